// Farthest point sampling on CUDA: one block a cloud; the running distances live in global memory, the winner of a step
// is found by warp shuffles and one pass over the warps' results.
#include "pointpeft.h"

namespace pointpeft {
namespace {

constexpr int kThreads = 512;

// Larger distance wins; of equal ones the lower index.
template <class A>
__device__ __forceinline__ void keep_better(A& distance, int64_t& index, A other, int64_t other_index) {
  if (other > distance || (other == distance && other_index < index)) {
    distance = other;
    index = other_index;
  }
}

template <class A>
__device__ __forceinline__ void warp_best(A& distance, int64_t& index) {
  for (int offset = 16; offset > 0; offset >>= 1) {
    const A other = __shfl_down_sync(0xffffffffu, distance, offset);
    const int64_t other_index = __shfl_down_sync(0xffffffffu, index, offset);
    keep_better(distance, index, other, other_index);
  }
}

template <class T, class A>
__global__ void __launch_bounds__(kThreads)
    sample_kernel(const T* xyz, int64_t stride_b, int64_t stride_n, int64_t stride_c, int64_t n, int64_t num_samples,
                  const int64_t* lengths, const int64_t* starts, int64_t start, A min_sq_norm, A* distances,
                  int64_t* idx) {
  __shared__ A warp_distance[2][kThreads / 32];
  __shared__ int64_t warp_index[2][kThreads / 32];
  const int64_t b = blockIdx.x;
  const int64_t length = lengths ? lengths[b] : n;
  const T* cloud = xyz + b * stride_b;
  A* distance = distances + b * n;
  int64_t* out = idx + b * num_samples;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  for (int64_t i = threadIdx.x; i < length; i += kThreads) {
    const A x = A(cloud[i * stride_n]), y = A(cloud[i * stride_n + stride_c]),
            z = A(cloud[i * stride_n + 2 * stride_c]);
    const bool candidate =
        isfinite(x) && isfinite(y) && isfinite(z) && !(min_sq_norm > 0 && x * x + y * y + z * z <= min_sq_norm);
    distance[i] = candidate ? A(INFINITY) : A(-1);
  }
  int64_t pick = starts ? starts[b] : start;
  for (int64_t m = 0; m < num_samples; ++m) {
    if (threadIdx.x == 0) out[m] = pick;
    const T* p = cloud + pick * stride_n;
    const A cx = A(p[0]), cy = A(p[stride_c]), cz = A(p[2 * stride_c]);
    A best = A(-2);
    int64_t best_index = 0;
    for (int64_t i = threadIdx.x; i < length; i += kThreads) {  // each thread reads only what it wrote: no barrier
      A d = distance[i];
      if (d >= A(0)) {
        const A dx = A(cloud[i * stride_n]) - cx, dy = A(cloud[i * stride_n + stride_c]) - cy,
                dz = A(cloud[i * stride_n + 2 * stride_c]) - cz;
        d = fmin(d, dx * dx + dy * dy + dz * dz);
        distance[i] = d;
      }
      if (d > best) {
        best = d;
        best_index = i;
      }
    }
    warp_best(best, best_index);
    const int slot = m & 1;  // two slots: a fast warp may be one step ahead of a slow one
    if (lane == 0) {
      warp_distance[slot][warp] = best;
      warp_index[slot][warp] = best_index;
    }
    __syncthreads();
    best = lane < kThreads / 32 ? warp_distance[slot][lane] : A(-3);
    best_index = lane < kThreads / 32 ? warp_index[slot][lane] : 0;
    warp_best(best, best_index);
    pick = __shfl_sync(0xffffffffu, best_index, 0);
  }
}

}  // namespace

Tensor furthest_point_sample(const Tensor& xyz, int64_t num_samples, const std::optional<Tensor>& lengths,
                             const std::optional<Tensor>& starts, int64_t start, double min_sq_norm) {
  const int64_t batch = xyz.size(0), n = xyz.size(1);
  Tensor idx = torch::stable::new_empty(xyz, {batch, num_samples}, ScalarType::Long);
  if (batch == 0) return idx;
  torch::stable::accelerator::DeviceGuard guard(xyz.get_device_index());
  const cudaStream_t stream = current_stream(xyz);
  dispatch_floating("xyz", xyz.scalar_type(), [&](auto type) {
    using T = decltype(type);
    using A = Accumulate<T>;
    const ScalarType accumulate = std::is_same_v<A, double> ? ScalarType::Double : ScalarType::Float;
    Tensor distances = torch::stable::new_empty(xyz, {batch, n}, accumulate);
    sample_kernel<T, A><<<batch, kThreads, 0, stream>>>(
        static_cast<const T*>(xyz.const_data_ptr()), xyz.stride(0), xyz.stride(1), xyz.stride(2), n, num_samples,
        lengths ? lengths->const_data_ptr<int64_t>() : nullptr, starts ? starts->const_data_ptr<int64_t>() : nullptr,
        start, A(min_sq_norm), static_cast<A*>(distances.mutable_data_ptr()), idx.mutable_data_ptr<int64_t>());
    check_launch("furthest_point_sample");
  });
  return idx;
}

}  // namespace pointpeft

STABLE_TORCH_LIBRARY_IMPL(pointpeft, CUDA, m) {
  m.impl("furthest_point_sample", TORCH_BOX(&pointpeft::furthest_point_sample));
}
