// The k best of a warp's keys. A key is a distance and an index in one ordered number, so ties need no care. The best
// are sorted across lanes and registers; 32 new keys are sorted by a bitonic network of shuffles and merged in: of two
// sorted runs, the element-wise minimum of one and the other reversed holds the smaller half, and is itself bitonic.
//
// Nothing here but lanes, shuffles and integers, so that a host with 32 emulated lanes can run it too
// (tests/csrc/test_device_functions.py).
#pragma once

#include <cstdint>

namespace pointpeft::knn {

constexpr unsigned kAll = 0xffffffffu;

// (distance, index) as one ordered key. Distances are not negative, so their bits order as they do; NaN, from
// coordinates that are not finite, comes behind infinity.
template <class A>
struct Key;

template <>
struct Key<float> {
  uint64_t bits;
  __device__ static Key make(float d, uint32_t i) {
    const uint32_t high = d == d ? __float_as_uint(d) : 0x7fc00000u;
    return {(uint64_t{high} << 32) | i};
  }
  __device__ static Key last() { return {~uint64_t{0}}; }
  __device__ bool operator<(const Key& o) const { return bits < o.bits; }
  __device__ float distance() const { return __uint_as_float(static_cast<uint32_t>(bits >> 32)); }
  __device__ uint32_t index() const { return static_cast<uint32_t>(bits); }
  __device__ Key from(int lane) const { return {__shfl_sync(kAll, bits, lane)}; }
  __device__ Key across(int mask) const { return {__shfl_xor_sync(kAll, bits, mask)}; }
};

template <>
struct Key<double> {
  uint64_t bits;
  uint32_t i;
  __device__ static Key make(double d, uint32_t i) {
    return {d == d ? static_cast<uint64_t>(__double_as_longlong(d)) : 0x7ff8000000000000ull, i};
  }
  __device__ static Key last() { return {~uint64_t{0}, ~0u}; }
  __device__ bool operator<(const Key& o) const { return bits < o.bits || (bits == o.bits && i < o.i); }
  __device__ double distance() const { return __longlong_as_double(static_cast<long long>(bits)); }
  __device__ uint32_t index() const { return i; }
  __device__ Key from(int lane) const { return {__shfl_sync(kAll, bits, lane), __shfl_sync(kAll, i, lane)}; }
  __device__ Key across(int mask) const { return {__shfl_xor_sync(kAll, bits, mask), __shfl_xor_sync(kAll, i, mask)}; }
};

template <class K>
__device__ __forceinline__ K least(const K& a, const K& b) {
  return b < a ? b : a;
}

template <class K>
__device__ __forceinline__ K most(const K& a, const K& b) {
  return b < a ? a : b;
}

// Compares with the lane `stride` away; the lower lane keeps the smaller where `ascending`.
template <class K>
__device__ __forceinline__ K exchange(const K& mine, int stride, bool ascending, int lane) {
  const K other = mine.across(stride);
  return ((lane & stride) == 0) == ascending ? least(mine, other) : most(mine, other);
}

template <class K>
__device__ __forceinline__ K sort_warp(K key, int lane) {
#pragma unroll
  for (int size = 2; size <= 32; size *= 2)
#pragma unroll
    for (int stride = size / 2; stride > 0; stride /= 2) key = exchange(key, stride, (lane & size) == 0, lane);
  return key;
}

// Sorts what falls and then rises, or rises and then falls.
template <class K>
__device__ __forceinline__ K sort_bitonic(K key, int lane) {
#pragma unroll
  for (int stride = 16; stride > 0; stride /= 2) key = exchange(key, stride, true, lane);
  return key;
}

// The smallest 32 P of best and the sorted `fresh`.
template <int P, class K>
__device__ __forceinline__ void merge(K (&best)[P], const K& fresh, int lane) {
  best[P - 1] = sort_bitonic(least(best[P - 1], fresh.from(31 - lane)), lane);
#pragma unroll
  for (int j = P - 1; j > 0; --j) {
    const K upper = best[j].from(31 - lane), lower = best[j - 1];
    best[j - 1] = sort_bitonic(least(lower, upper), lane);
    best[j] = sort_bitonic(most(lower, upper), lane);
  }
}

// The `wanted` smallest of the keys offered to a warp, wanted <= 32 P.
template <int P, class K>
struct Selection {
  K best[P], limit;  // `limit`: the wanted-th best so far
  K* slots;          // 64, shared, of this warp
  int wanted, lane, waiting;

  __device__ __forceinline__ Selection(K* slots, int wanted, int lane)
      : limit(K::last()), slots(slots), wanted(wanted), lane(lane), waiting(0) {
#pragma unroll
    for (int j = 0; j < P; ++j) best[j] = K::last();
  }

  // best[j] for a j known only at run time: chosen, as an index would put the array into memory.
  __device__ __forceinline__ K row(int j) const {
    K key = best[0];
#pragma unroll
    for (int i = 1; i < P; ++i)
      if (i == j) key = best[i];
    return key;
  }

  __device__ __forceinline__ void take_32() {
    const K fresh = lane < waiting ? slots[lane] : K::last();
    const K rest = lane + 32 < waiting ? slots[lane + 32] : K::last();
    __syncwarp();
    slots[lane] = rest;
    __syncwarp();
    waiting = max(waiting - 32, 0);
    merge<P>(best, sort_warp(fresh, lane), lane);
    limit = row((wanted - 1) / 32).from((wanted - 1) % 32);
  }

  __device__ __forceinline__ void offer(const K& key, bool real, const K& floor) {
    const bool wants = real && key < limit && !(key < floor);
    const unsigned votes = __ballot_sync(kAll, wants);
    if (votes == 0) return;
    if (wants) slots[waiting + __popc(votes & ((1u << lane) - 1))] = key;
    waiting += __popc(votes);
    __syncwarp();
    if (waiting >= 32) take_32();
  }

  __device__ __forceinline__ void finish() {
    if (waiting > 0) take_32();  // offer leaves fewer than 32
  }
};

}  // namespace pointpeft::knn
