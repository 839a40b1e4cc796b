// Farthest point sampling on CUDA. One block a cloud, points and running distances in registers, one barrier a step:
// the warps' winners go through shared slots, two sets of them, because a fast warp may be one step ahead of a slow
// one. Clouds too large for one block take a cluster of eight where there are clusters (sm_90 on), with a second
// exchange through distributed shared memory and a cluster barrier; still larger ones keep their distances in global
// memory.
#include <cooperative_groups.h>

#include "furthest_point_lanes.cuh"
#include "pointpeft.h"

namespace pointpeft {
namespace {

constexpr int kClusterBlocks = 8;  // the most that every device with clusters offers
template <class A>
struct Task {
  const A* xyz;
  int64_t stride_b, stride_n, stride_c, n, num_samples;
  const int64_t *lengths, *starts;
  int64_t start;
  A min_sq_norm;
  A* distances;  // (B, N), where registers do not hold them
  int64_t* idx;
};

// kPoints > 0: so many points a thread, in registers. kPoints = 0: any number, in global memory; each thread reads only
// the distances that it wrote, so that needs no barrier.
template <class A, class Index, int kThreads, int kPoints, int kBlocks>
__device__ __forceinline__ void sample(const Task<A>& task) {
  namespace cg = cooperative_groups;
  using Bits = typename Types<A>::Bits;
  using Candidate = Best<Bits, Index>;
  constexpr int kWarps = kThreads / 32;
  __shared__ Candidate warp_slots[2][kWarps];
  __shared__ Candidate block_slots[2][kBlocks];
  const int64_t b = blockIdx.x / kBlocks, rank = blockIdx.x % kBlocks;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int64_t thread = rank * kThreads + threadIdx.x;
  constexpr int64_t kAllThreads = int64_t{kThreads} * kBlocks;
  const Cloud<A> cloud{task.xyz + b * task.stride_b, task.stride_n, task.stride_c,
                       task.lengths ? task.lengths[b] : task.n};
  A* distances = kPoints > 0 ? nullptr : task.distances + b * task.n;
  constexpr int kHeld = kPoints > 0 ? kPoints : 1;
  A x[kHeld], y[kHeld], z[kHeld], distance[kHeld];
  if constexpr (kPoints > 0) {
#pragma unroll
    for (int k = 0; k < kPoints; ++k) {
      const int64_t i = point_of<int64_t>(k, thread, kAllThreads);
      const bool real = i < cloud.length;
      x[k] = real ? cloud.at(i, 0) : A(0);
      y[k] = real ? cloud.at(i, 1) : A(0);
      z[k] = real ? cloud.at(i, 2) : A(0);
      distance[k] = real ? first_distance(x[k], y[k], z[k], task.min_sq_norm) : kPadding<A>;
    }
  } else {
    for (int64_t i = thread; i < cloud.length; i += kAllThreads)
      distances[i] = first_distance(cloud.at(i, 0), cloud.at(i, 1), cloud.at(i, 2), task.min_sq_norm);
  }
#if __CUDA_ARCH__ >= 900
  if constexpr (kBlocks > 1) cg::this_cluster().sync();  // no block writes to one that has not begun
#endif
  int64_t pick = task.starts ? task.starts[b] : task.start;
  for (int64_t m = 0; m < task.num_samples; ++m) {
    if (thread == 0) task.idx[b * task.num_samples + m] = pick;
    if (m + 1 == task.num_samples) break;  // the same for all threads of all blocks
    const A cx = cloud.at(pick, 0), cy = cloud.at(pick, 1), cz = cloud.at(pick, 2);
    Candidate best{Types<A>::bits(kPadding<A>), static_cast<Index>(-1)};
    if constexpr (kPoints > 0) {
      int held = 0;
      best.bits = Types<A>::bits(distance[0] = nearer(distance[0], x[0], y[0], z[0], cx, cy, cz));
#pragma unroll
      for (int k = 1; k < kPoints; ++k) {
        distance[k] = nearer(distance[k], x[k], y[k], z[k], cx, cy, cz);
        const Bits bits = Types<A>::bits(distance[k]);
        if (bits > best.bits) {
          best.bits = bits;
          held = k;
        }
      }
      best.index = point_of<Index>(held, static_cast<Index>(thread), static_cast<Index>(kAllThreads));
    } else {
      for (int64_t i = thread; i < cloud.length; i += kAllThreads) {
        const A d = nearer(distances[i], cloud.at(i, 0), cloud.at(i, 1), cloud.at(i, 2), cx, cy, cz);
        distances[i] = d;
        const Bits bits = Types<A>::bits(d);
        if (bits > best.bits) best = {bits, static_cast<Index>(i)};
      }
    }
    best = warp_best(best);
    const int slot = m & 1;
    if (lane == 0) warp_slots[slot][warp] = best;
    __syncthreads();
    const Candidate none{Types<A>::bits(kPadding<A>), static_cast<Index>(-1)};
    best = warp_best(lane < kWarps ? warp_slots[slot][lane] : none);
#if __CUDA_ARCH__ >= 900
    if constexpr (kBlocks > 1) {
      cg::cluster_group cluster = cg::this_cluster();
      if (threadIdx.x < kBlocks) *cluster.map_shared_rank(&block_slots[slot][rank], threadIdx.x) = best;
      cluster.sync();
      best = warp_best(lane < kBlocks ? block_slots[slot][lane] : none);
    }
#endif
    pick = static_cast<int64_t>(best.index);
  }
}

template <class A, class Index, int kThreads, int kPoints>
__global__ void __launch_bounds__(kThreads) block_kernel(Task<A> task) {
  sample<A, Index, kThreads, kPoints, 1>(task);
}

template <class A, class Index, int kThreads, int kPoints>
__global__ void __launch_bounds__(kThreads) cluster_kernel(Task<A> task) {
#if __CUDA_ARCH__ >= 900
  sample<A, Index, kThreads, kPoints, kClusterBlocks>(task);
#else
  __trap();  // never launched: the host asks the device first
#endif
}

template <class A, int kThreads, int kPoints>
void launch_block(const Task<A>& task, int64_t batch, cudaStream_t stream) {
  using Index = std::conditional_t<sizeof(A) == 4 && kPoints != 0, uint32_t, unsigned long long>;
  block_kernel<A, Index, kThreads, kPoints><<<batch, kThreads, 0, stream>>>(task);
}

template <class A, int kThreads, int kPoints>
void launch_cluster(const Task<A>& task, int64_t batch, cudaStream_t stream) {
  using Index = std::conditional_t<sizeof(A) == 4 && kPoints != 0, uint32_t, unsigned long long>;
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim.x = kClusterBlocks;
  attribute.val.clusterDim.y = attribute.val.clusterDim.z = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(batch * kClusterBlocks));
  config.blockDim = dim3(kThreads);
  config.stream = stream;
  config.attrs = &attribute;
  config.numAttrs = 1;
  cudaLaunchKernelEx(&config, cluster_kernel<A, Index, kThreads, kPoints>, task);  // its error: check_launch
}

bool has_clusters(int device) {
  int major = 0;
  return cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device) == cudaSuccess && major >= 9;
}

// Registers that one block has for points: 4 a point in float32, and at most 128 a thread with 512 threads.
template <class A>
constexpr int64_t kBlockPoints = sizeof(A) == 4 ? 512 * 24 : 512 * 8;

template <class A>
void launch(Task<A> task, const Tensor& like, int64_t batch, cudaStream_t stream) {
  const int64_t n = task.n;
  if (n <= 512) return launch_block<A, 128, 4>(task, batch, stream);
  if (n <= 1024) return launch_block<A, 256, 4>(task, batch, stream);
  if (n <= 2048) return launch_block<A, 256, 8>(task, batch, stream);
  if (n <= 4096) return launch_block<A, 512, 8>(task, batch, stream);
  if constexpr (sizeof(A) == 4) {
    if (n <= 8192) return launch_block<A, 512, 16>(task, batch, stream);
    if (n <= 12288) return launch_block<A, 512, 24>(task, batch, stream);
  }
  const bool clusters = has_clusters(like.get_device_index());
  if (clusters && n <= kClusterBlocks * kBlockPoints<A>)
    return launch_cluster<A, 512, sizeof(A) == 4 ? 24 : 8>(task, batch, stream);
  const ScalarType dtype = sizeof(A) == 8 ? ScalarType::Double : ScalarType::Float;
  // Freed when this returns, to be given only to later work of the same stream.
  Tensor distances = torch::stable::new_empty(like, {batch, n}, dtype);
  task.distances = static_cast<A*>(distances.mutable_data_ptr());
  if (clusters) return launch_cluster<A, 1024, 0>(task, batch, stream);
  launch_block<A, 1024, 0>(task, batch, stream);
}

}  // namespace

Tensor furthest_point_sample(const Tensor& xyz, int64_t num_samples, const std::optional<Tensor>& lengths,
                             const std::optional<Tensor>& starts, int64_t start, double min_sq_norm) {
  const int64_t batch = xyz.size(0), n = xyz.size(1);
  Tensor idx = torch::stable::new_empty(xyz, {batch, num_samples}, ScalarType::Long);
  if (batch == 0) return idx;
  torch::stable::accelerator::DeviceGuard guard(xyz.get_device_index());
  const cudaStream_t stream = current_stream(xyz);
  const bool is_double = xyz.scalar_type() == ScalarType::Double;
  const Tensor wide =
      is_double || xyz.scalar_type() == ScalarType::Float ? xyz : torch::stable::to(xyz, ScalarType::Float);
  const auto run = [&](auto type) {
    using A = decltype(type);
    launch(Task<A>{static_cast<const A*>(wide.const_data_ptr()), wide.stride(0), wide.stride(1), wide.stride(2), n,
                   num_samples, lengths ? lengths->const_data_ptr<int64_t>() : nullptr,
                   starts ? starts->const_data_ptr<int64_t>() : nullptr, start, A(min_sq_norm), nullptr,
                   idx.mutable_data_ptr<int64_t>()},
           xyz, batch, stream);
    check_launch("furthest_point_sample");
  };
  is_double ? run(double{}) : run(float{});
  return idx;
}

}  // namespace pointpeft

STABLE_TORCH_LIBRARY_IMPL(pointpeft, CUDA, m) {
  m.impl("furthest_point_sample", TORCH_BOX(&pointpeft::furthest_point_sample));
}
