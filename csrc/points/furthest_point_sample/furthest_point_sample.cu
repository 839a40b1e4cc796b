// Farthest point sampling on CUDA. A step is short and depends on the one before it, so one kernel makes all steps of a
// cloud, and the threads that share a cloud stay together: a block, or a cluster of blocks where one is too small. Each
// thread lowers the distances of its own points and offers its farthest one; a reduction over warp, block and cluster
// gives every thread the next pick. Where a cloud's points and distances are is one of three ways
// (furthest_point_plan.h):
//   held     points and running distances in registers: one block a small cloud, a cluster of up to 16 a larger one
//            (sm_90 on; 196 608 points in float32)
//   buckets  beyond: buckets along a Morton curve, of which a step reads only those that its pick can change
//            (furthest_point_buckets.cuh), by a cluster, or by one block where there are none
//   memory   few samples of a large cloud: distances in global memory, every point in every step
// One barrier a step in a block: the warps' winners go through shared slots, two sets of them, because a fast warp may
// be one step ahead of a slow one. A cluster exchanges its blocks' winners through distributed shared memory as well,
// and a cluster barrier.
#include <cooperative_groups.h>

#include <mutex>

#include "common/device_checks.h"
#include "furthest_point_buckets.cuh"
#include "furthest_point_plan.h"

namespace pointpeft::furthest_point_sample {
namespace {

constexpr int kMostBlocks = 16;  // of a cluster; above 8 only where the device says so

// The threads of a block, or of the blocks of a cluster, that sample one cloud together.
template <class A, class Index, int kThreads, bool kCluster>
struct Team {
  using Candidate = Best<typename Types<A>::Bits, Index>;
  struct Slots {
    Candidate warps[2][kThreads / 32], blocks[2][kCluster ? kMostBlocks : 1];
  };
  Slots& slots;
  const int rank, blocks;  // of the cluster
  const int64_t thread, threads;

  __device__ __forceinline__ Team(Slots& slots, int blocks)
      : slots(slots),
        rank(kCluster ? blockIdx.x % blocks : 0),
        blocks(kCluster ? blocks : 1),
        thread(rank * kThreads + threadIdx.x),
        threads(this->blocks * kThreads) {
#if __CUDA_ARCH__ >= 900
    if constexpr (kCluster) cooperative_groups::this_cluster().sync();  // no block writes to one that has not begun
#else
    if constexpr (kCluster) __trap();  // never launched: the host asks the device first
#endif
  }
  __device__ __forceinline__ int lane() const { return threadIdx.x % 32; }
  __device__ __forceinline__ int warp() const { return threadIdx.x / 32 * blocks + rank; }
  __device__ __forceinline__ int warps() const { return kThreads / 32 * blocks; }

  __device__ __forceinline__ Candidate best(Candidate mine, int slot) {
    const Candidate none = nobody<A, Index>();
    mine = warp_best(mine);
    if (lane() == 0) slots.warps[slot][threadIdx.x / 32] = mine;
    __syncthreads();
    mine = warp_best(lane() < kThreads / 32 ? slots.warps[slot][lane()] : none);
#if __CUDA_ARCH__ >= 900
    if constexpr (kCluster) {
      const auto cluster = cooperative_groups::this_cluster();
      if (threadIdx.x < blocks) *cluster.map_shared_rank(&slots.blocks[slot][rank], threadIdx.x) = mine;
      cluster.sync();
      mine = warp_best(lane() < blocks ? slots.blocks[slot][lane()] : none);
    }
#endif
    return mine;
  }
};

template <class A, class Index, int kThreads, int kPoints, bool kCluster>
__global__ void __launch_bounds__(kThreads) held_kernel(Task<A> task, int blocks) {
  using Threads = Team<A, Index, kThreads, kCluster>;
  __shared__ typename Threads::Slots slots;
  Threads team(slots, blocks);
  sample_held<Index, kPoints>(task, blockIdx.x / team.blocks, team);
}

template <class A, int kThreads, bool kCluster>
__global__ void __launch_bounds__(kThreads) memory_kernel(Task<A> task, int blocks) {
  using Index = unsigned long long;
  using Threads = Team<A, Index, kThreads, kCluster>;
  __shared__ typename Threads::Slots slots;
  Threads team(slots, blocks);
  sample_in_memory<Index>(task, blockIdx.x / team.blocks, team);
}

template <class A, int kThreads, bool kCluster>
__global__ void __launch_bounds__(kThreads, 1) bucket_kernel(Task<A> task, Buckets<A> buckets, int blocks) {
  using Threads = Team<A, uint32_t, kThreads, kCluster>;
  __shared__ typename Threads::Slots slots;
  Threads team(slots, blocks);
  sample_in_buckets(task, buckets, blockIdx.x / team.blocks, team);
}

// ---- the buckets: bounds, keys, a sort, the points in order ----

constexpr int kThreads = 256;

__device__ __forceinline__ int64_t warp_of_grid() {
  return (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) / 32;
}

// A warp a part of a cloud; a part is every `parts`-th 32 points.
template <class A>
__global__ void __launch_bounds__(kThreads) bounds_kernel(Task<A> task, int64_t parts, int64_t warps, Box<A>* bounds) {
  const int64_t w = warp_of_grid();
  if (w >= warps) return;
  const int lane = threadIdx.x % 32;
  const Box<A> box =
      furthest_point_sample::bounds(task.cloud(w / parts), w % parts * 32 + lane, 32 * parts, task.min_sq_norm);
  if (lane == 0) bounds[w] = box;
}

template <class A>
__global__ void __launch_bounds__(kThreads)
    key_kernel(Task<A> task, int64_t parts, int64_t warps, const Box<A>* bounds, int64_t* keys) {
  const int64_t w = warp_of_grid();
  if (w >= warps) return;
  const int64_t b = w / parts, lane = threadIdx.x % 32;
  const Cloud<A> cloud = task.cloud(b);
  Box<A> box = empty_box<A>();
  for (int64_t part = lane; part < parts; part += 32) enclose(box, bounds[b * parts + part]);
  box = warp_box(box);
  for (int64_t i = w % parts * 32 + lane; i < task.n; i += 32 * parts)
    keys[b * task.n + i] = key_of(cloud, box, i, task.min_sq_norm);
}

template <class A>
__global__ void __launch_bounds__(kThreads)
    fill_kernel(Task<A> task, const int64_t* order, Buckets<A> buckets, int64_t warps) {
  const int64_t w = warp_of_grid();
  if (w < warps) fill_bucket(task, order, buckets, w / buckets.a_cloud, w % buckets.a_cloud, threadIdx.x % 32);
}

// ---- launches ----

// `kernel` with `blocks` blocks a cloud, as clusters where those are more than one.
template <class... Parameters, class... Arguments>
void launch(void (*kernel)(Parameters...), int64_t batch, int blocks, int threads, cudaStream_t stream,
            const Arguments&... arguments) {
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim.x = static_cast<unsigned>(blocks);
  attribute.val.clusterDim.y = attribute.val.clusterDim.z = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(batch * blocks));
  config.blockDim = dim3(static_cast<unsigned>(threads));
  config.stream = stream;
  config.attrs = &attribute;
  config.numAttrs = blocks > 1 ? 1 : 0;
  if (blocks > 8) cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1);
  cudaLaunchKernelEx(&config, kernel, arguments...);
  check_launch("furthest_point_sample");
}

// Whether the device can run `kernel` in clusters of so many blocks at all.
template <class... Parameters>
bool fits(void (*kernel)(Parameters...), int blocks, int threads) {
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim.x = static_cast<unsigned>(blocks);
  attribute.val.clusterDim.y = attribute.val.clusterDim.z = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(blocks));
  config.blockDim = dim3(static_cast<unsigned>(threads));
  config.attrs = &attribute;
  config.numAttrs = 1;
  int clusters = 0;
  const bool good = cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1) == cudaSuccess &&
                    cudaOccupancyMaxActiveClusters(&clusters, kernel, &config) == cudaSuccess && clusters > 0;
  if (!good) cudaGetLastError();  // a refusal is an answer
  return good;
}

template <class A>
using HeldIndex = std::conditional_t<sizeof(A) == 4, uint32_t, unsigned long long>;

template <class A>
DeviceLimits ask_device(int device) {
  DeviceLimits limits{1, 1};
  int major = 0;
  cudaDeviceGetAttribute(&limits.processors, cudaDevAttrMultiProcessorCount, device);
  cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
  if (major < 9) return limits;
  for (int blocks = kMostBlocks; blocks > 1; blocks /= 2) {
    if (fits(held_kernel<A, HeldIndex<A>, 512, kMostHeld<A>, true>, blocks, 512) &&
        fits(bucket_kernel<A, 512, true>, blocks, 512) && fits(memory_kernel<A, 1024, true>, blocks, 1024)) {
      limits.most_blocks = blocks;
      break;
    }
  }
  return limits;
}

// Asked once a device.
template <class A>
DeviceLimits limits_of(int device) {
  static std::mutex mutex;
  static std::vector<std::optional<DeviceLimits>> known;
  const std::lock_guard<std::mutex> lock(mutex);
  if (device >= static_cast<int>(known.size())) known.resize(device + 1);
  if (!known[device]) known[device] = ask_device<A>(device);
  return *known[device];
}

// Clusters are of blocks of 512 threads; in a block alone those hold more than 4 points each, as smaller blocks take
// what fewer hold.
template <class A, int kThreads, int kPoints>
void launch_held(const Task<A>& task, int64_t batch, int blocks, cudaStream_t stream) {
  constexpr bool kIsInClusters = kThreads == 512, kIsAlone = kThreads < 512 || kPoints > 4;
  if constexpr (kIsAlone)
    if (blocks == 1)
      return launch(held_kernel<A, HeldIndex<A>, kThreads, kPoints, false>, batch, 1, kThreads, stream, task, 1);
  if constexpr (kIsInClusters)
    if (blocks > 1)
      return launch(held_kernel<A, HeldIndex<A>, kThreads, kPoints, true>, batch, blocks, kThreads, stream, task,
                    blocks);
  throw std::logic_error("furthest_point_sample has no kernel for its plan");
}

template <class A>
void launch_held(const Plan& plan, const Task<A>& task, int64_t batch, cudaStream_t stream) {
  if (plan.threads == 128) return launch_held<A, 128, 4>(task, batch, 1, stream);
  if (plan.threads == 256 && plan.points == 4) return launch_held<A, 256, 4>(task, batch, 1, stream);
  if (plan.threads == 256) return launch_held<A, 256, 8>(task, batch, 1, stream);
  if (plan.points == 4) return launch_held<A, 512, 4>(task, batch, plan.blocks, stream);
  if (plan.points == 8) return launch_held<A, 512, 8>(task, batch, plan.blocks, stream);
  if constexpr (kMostHeld<A> == 24) {
    if (plan.points == 16) return launch_held<A, 512, 16>(task, batch, plan.blocks, stream);
    launch_held<A, 512, 24>(task, batch, plan.blocks, stream);
  }
}

// The order that sorts each row of `keys` (B, N), equal ones as they stand.
Tensor sorted_order(const Tensor& keys) {
  std::array<StableIValue, 4> stack{torch::stable::detail::from(keys),
                                    torch::stable::detail::from(std::optional<bool>(true)),
                                    torch::stable::detail::from(int64_t{1}), torch::stable::detail::from(false)};
  TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::sort", "stable", stack.data(), TORCH_ABI_VERSION));
  const Tensor sorted = torch::stable::detail::to<Tensor>(stack[0]);
  return torch::stable::detail::to<Tensor>(stack[1]);
}

// Memory that a kernel of this stream uses; freed when its owner returns, it is given only to later work of the stream.
template <class T>
T* scratch(std::vector<Tensor>& owner, const Tensor& like, int64_t count) {
  owner.push_back(
      torch::stable::new_empty(like, std::vector<int64_t>{count * static_cast<int64_t>(sizeof(T))}, ScalarType::Byte));
  return static_cast<T*>(owner.back().mutable_data_ptr());
}

template <class A>
void launch_buckets(const Plan& plan, const Task<A>& task, const Tensor& like, int64_t batch, cudaStream_t stream) {
  std::vector<Tensor> owner;
  const auto blocks = [](int64_t warps) { return static_cast<unsigned>((warps * 32 + kThreads - 1) / kThreads); };
  const int64_t parts = std::min<int64_t>(1024, (task.n + 1023) / 1024), warps = batch * parts;
  Box<A>* bounds = scratch<Box<A>>(owner, like, warps);
  bounds_kernel<A><<<blocks(warps), kThreads, 0, stream>>>(task, parts, warps, bounds);
  check_launch("furthest_point_sample");
  Tensor keys = torch::stable::new_empty(like, std::vector<int64_t>{batch, task.n}, ScalarType::Long);
  key_kernel<A><<<blocks(warps), kThreads, 0, stream>>>(task, parts, warps, bounds, keys.mutable_data_ptr<int64_t>());
  check_launch("furthest_point_sample");
  const Tensor order = sorted_order(keys);
  const int64_t size = bucket_size(task.n, int64_t{plan.threads} * plan.blocks);
  const int64_t a_cloud = (task.n + size - 1) / size, all = batch * a_cloud;
  const Buckets<A> buckets{scratch<Placed<A>>(owner, like, all * size),
                           scratch<A>(owner, like, all * size),
                           scratch<Box<A>>(owner, like, all),
                           scratch<Winner<A>>(owner, like, all),
                           a_cloud,
                           size};
  fill_kernel<A><<<blocks(all), kThreads, 0, stream>>>(task, order.const_data_ptr<int64_t>(), buckets, all);
  check_launch("furthest_point_sample");
  if (plan.blocks == 1)
    launch(bucket_kernel<A, 512, false>, batch, 1, plan.threads, stream, task, buckets, 1);
  else
    launch(bucket_kernel<A, 512, true>, batch, plan.blocks, plan.threads, stream, task, buckets, plan.blocks);
}

template <class A>
void launch(Task<A> task, const Tensor& like, int64_t batch, cudaStream_t stream) {
  const Plan plan = plan_samples<A>(task.n, task.num_samples, batch, limits_of<A>(like.get_device_index()));
  if (plan.way == Plan::held) return launch_held<A>(plan, task, batch, stream);
  if (plan.way == Plan::buckets) return launch_buckets<A>(plan, task, like, batch, stream);
  std::vector<Tensor> owner;
  task.distances = scratch<A>(owner, like, batch * task.n);
  if (plan.blocks == 1)
    launch(memory_kernel<A, 1024, false>, batch, 1, plan.threads, stream, task, 1);
  else
    launch(memory_kernel<A, 1024, true>, batch, plan.blocks, plan.threads, stream, task, plan.blocks);
}

}  // namespace

Tensor sample(const Tensor& xyz, int64_t num_samples, const std::optional<Tensor>& lengths,
              const std::optional<Tensor>& starts, int64_t start, double min_sq_norm) {
  const Sampling checked = checked_sampling(xyz, "num_samples", num_samples, lengths, starts, start, min_sq_norm);
  require_finite_on_device("xyz", xyz, checked.lengths);
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
                   num_samples, checked.lengths ? checked.lengths->const_data_ptr<int64_t>() : nullptr,
                   checked.starts ? checked.starts->const_data_ptr<int64_t>() : nullptr, start, A(min_sq_norm), nullptr,
                   idx.mutable_data_ptr<int64_t>()},
           xyz, batch, stream);
  };
  is_double ? run(double{}) : run(float{});
  return idx;
}

}  // namespace pointpeft::furthest_point_sample

STABLE_TORCH_LIBRARY_IMPL(pointpeft, CUDA, m) {
  m.impl("furthest_point_sample", TORCH_BOX(&pointpeft::furthest_point_sample::sample));
}
