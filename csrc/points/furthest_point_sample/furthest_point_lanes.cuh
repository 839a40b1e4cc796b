// What a lane of furthest_point_sample computes, and the winner of a warp. Distances that are not negative order as
// their bits do as integers, of which the hardware has a maximum over a warp since sm_80; a second reduction finds the
// lowest index among the lanes that have it. Marks below zero stand for points that are never picked and for lanes
// without one.
//
// Nothing here but lanes, shuffles and arithmetic, so that a host with emulated lanes can run it too (tests/csrc).
#pragma once

#include <cmath>
#include <cstdint>

namespace pointpeft::furthest_point_sample {

constexpr unsigned kAllLanes = 0xffffffffu;

// Distances are compared by their bits as integers, for which the hardware has a maximum over a warp. That orders what
// is not negative as usual, and these two below it: points that are never picked, and lanes without a point.
template <class A>
constexpr A kNever = A(-1);
template <class A>
constexpr A kPadding = A(-0.5);

template <class A>
struct Types;
template <>
struct Types<float> {
  using Bits = int32_t;
  static __device__ __forceinline__ Bits bits(float value) { return __float_as_int(value); }
};
template <>
struct Types<double> {
  using Bits = long long;
  static __device__ __forceinline__ Bits bits(double value) { return __double_as_longlong(value); }
};

// Point k of a thread is k * (threads of all blocks) further on: neighbouring threads read neighbouring points, and the
// points of a thread come in ascending order.
template <class Index>
__host__ __device__ constexpr Index point_of(Index k, Index thread, Index threads) {
  return k * threads + thread;
}
static_assert(point_of<int>(2, 5, 256) == 517 && point_of<int64_t>(int64_t{1} << 30, 1, 8) == (int64_t{1} << 33) + 1);

__device__ __forceinline__ int32_t warp_max(int32_t value) {
#if __CUDA_ARCH__ >= 800
  return __reduce_max_sync(kAllLanes, value);
#else
  for (int offset = 16; offset > 0; offset >>= 1) value = max(value, __shfl_xor_sync(kAllLanes, value, offset));
  return value;
#endif
}

__device__ __forceinline__ uint32_t warp_min(uint32_t value) {
#if __CUDA_ARCH__ >= 800
  return __reduce_min_sync(kAllLanes, value);
#else
  for (int offset = 16; offset > 0; offset >>= 1) value = min(value, __shfl_xor_sync(kAllLanes, value, offset));
  return value;
#endif
}

__device__ __forceinline__ long long warp_max(long long value) {
  for (int offset = 16; offset > 0; offset >>= 1) value = max(value, __shfl_xor_sync(kAllLanes, value, offset));
  return value;
}

__device__ __forceinline__ unsigned long long warp_min(unsigned long long value) {
  for (int offset = 16; offset > 0; offset >>= 1) value = min(value, __shfl_xor_sync(kAllLanes, value, offset));
  return value;
}

template <class Bits, class Index>
struct Best {
  Bits bits;
  Index index;
};

// The largest distance of the warp, and of equal ones the lowest index, in every lane.
template <class Bits, class Index>
__device__ __forceinline__ Best<Bits, Index> warp_best(Best<Bits, Index> mine) {
  const Bits most = warp_max(mine.bits);
  return {most, warp_min(mine.bits == most ? mine.index : static_cast<Index>(-1))};
}

template <class A>
struct Cloud {
  const A* data;
  int64_t stride_n, stride_c, length;
  __device__ __forceinline__ A at(int64_t i, int c) const { return data[i * stride_n + c * stride_c]; }
};

// Where a running distance starts. Points that are not finite are never picked.
template <class A>
__device__ __forceinline__ A first_distance(A x, A y, A z, A min_sq_norm) {
  if (!(isfinite(x) && isfinite(y) && isfinite(z))) return kNever<A>;
  return min_sq_norm > 0 && x * x + y * y + z * z <= min_sq_norm ? kNever<A> : static_cast<A>(INFINITY);
}

template <class A>
__device__ __forceinline__ A nearer(A old, A x, A y, A z, A cx, A cy, A cz) {
  const A dx = x - cx, dy = y - cy, dz = z - cz;
  return fmin(old, dx * dx + dy * dy + dz * dz);  // a negative mark stays; of NaN and a number the number
}

}  // namespace pointpeft::furthest_point_sample
