// Small kernels for test_emulation.py: each has one fault that the emulator must report, or none, and a value to give.
#include <cooperative_groups.h>
#include <cuda_runtime.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <stdexcept>
#include <string>

namespace {

constexpr unsigned kFull = 0xffffffffu;

struct Arguments {
  const float* x;
  float* out;
  int n;
};
struct Pair {
  float first[2], second[2];
};

// ---- no fault: a value of each lane ----

__global__ void reversed(Arguments a) {
  __shared__ float tile[64];
  tile[threadIdx.x] = a.x[threadIdx.x];
  __syncthreads();
  a.out[threadIdx.x] = tile[63 - threadIdx.x];
}
__global__ void shuffle_up(Arguments a) { a.out[threadIdx.x] = __shfl_up_sync(kFull, a.x[threadIdx.x], 3, 16); }
__global__ void shuffle_down(Arguments a) { a.out[threadIdx.x] = __shfl_down_sync(kFull, a.x[threadIdx.x], 3, 16); }
__global__ void shuffle_across(Arguments a) { a.out[threadIdx.x] = __shfl_xor_sync(kFull, a.x[threadIdx.x], 5); }
__global__ void shuffle_from(Arguments a) { a.out[threadIdx.x] = __shfl_sync(kFull, a.x[threadIdx.x], 37, 8); }
__global__ void votes(Arguments a) {
  const unsigned mask = __ballot_sync(kFull, a.x[threadIdx.x] > 20);
  const int all = __all_sync(kFull, threadIdx.x < 40), any = __any_sync(kFull, threadIdx.x == 40);
  a.out[threadIdx.x] = static_cast<float>(__popc(mask) * 100 + all * 10 + any);
}
__global__ void reductions(Arguments a) {
  const int value = static_cast<int>(a.x[threadIdx.x]) - 10;
  const int least = __reduce_min_sync(kFull, value), most = __reduce_max_sync(kFull, value);
  a.out[threadIdx.x] = static_cast<float>(1000 * least + most + (__reduce_add_sync(kFull, 1u) == 32 ? 0 : 1));
}
__global__ void tickets(Arguments a) { a.out[threadIdx.x] = atomicAdd(a.out + a.n, 1.0f); }

// ---- one fault ----

__global__ void race_in_shared_memory(Arguments a) {
  __shared__ float tile[64];
  tile[threadIdx.x] = a.x[threadIdx.x];
  a.out[threadIdx.x] = tile[threadIdx.x ^ 32];
}
__global__ void race_behind_a_vote(Arguments a) {
  __shared__ float tile[64];
  tile[threadIdx.x] = a.x[threadIdx.x];
  __ballot_sync(kFull, true);  // orders no memory
  a.out[threadIdx.x] = tile[threadIdx.x ^ 1];
}
__global__ void race_of_warps(Arguments a) {
  __shared__ float tile[64];
  tile[threadIdx.x] = a.x[threadIdx.x];
  __syncwarp();
  a.out[threadIdx.x] = tile[63 - threadIdx.x];
}
__global__ void race_in_global_memory(Arguments a) { a.out[0] = a.x[threadIdx.x]; }
__global__ void race_of_blocks(Arguments a) {
  if (threadIdx.x == 0) a.out[0] = a.x[blockIdx.x];
}
__global__ void race_with_an_atomic(Arguments a) {
  if (threadIdx.x == 0) a.out[0] = 1;
  atomicAdd(a.out, 1.0f);
}
__global__ void half_of_a_block_at_a_barrier(Arguments a) {
  if (threadIdx.x < 32) __syncthreads();
  a.out[threadIdx.x] = 0;
}
__global__ void two_barriers(Arguments a) {
  if (threadIdx.x < 32)
    __syncthreads();
  else
    __syncthreads();
  a.out[threadIdx.x] = 0;
}
__global__ void missing_lanes(Arguments a) {
  if (threadIdx.x % 32 < 16) a.out[threadIdx.x] = __shfl_xor_sync(kFull, a.x[threadIdx.x], 1);
}
__global__ void part_of_a_warp(Arguments a) {
  if (threadIdx.x % 32 < 16) a.out[threadIdx.x] = __shfl_xor_sync(0xffffu, a.x[threadIdx.x], 1);
}
__global__ void deadlock(Arguments a) {
  if (threadIdx.x == 0) __syncwarp();
  __syncthreads();
  a.out[threadIdx.x] = 0;
}
__global__ void endless_loop(Arguments a) {
  while (a.x[threadIdx.x] >= 0) a.out[threadIdx.x] = a.x[threadIdx.x] + a.out[threadIdx.x];
}
__global__ void endless_barriers(Arguments a) {
  while (a.x[0] >= 0) __syncthreads();
}
__global__ void shared_memory_not_written(Arguments a) {
  __shared__ float tile[64];
  if (threadIdx.x > 0) tile[threadIdx.x] = 0;
  __syncthreads();
  a.out[threadIdx.x] = tile[threadIdx.x];
}
__global__ void past_a_tensor(Arguments a) { a.out[threadIdx.x + a.n - 62] = 0; }
__global__ void before_a_tensor(Arguments a) { a.out[threadIdx.x] = (a.x - 1)[threadIdx.x]; }
__global__ void past_a_shared_array(Arguments a) {
  __shared__ float tile[64];
  float* moved = tile + 1;
  moved[threadIdx.x] = a.x[threadIdx.x];
}
__global__ void past_a_member(Arguments a) {
  Pair pair = {};
  pair.first[a.n / 32] = 1;
  a.out[threadIdx.x] = pair.second[0];
}
__global__ void misaligned_word(Arguments a) {
  const float4 four = *reinterpret_cast<const float4*>(a.x + 1);
  a.out[threadIdx.x] = four.x + four.w;
}
__global__ void write_to_an_input(Arguments a) { const_cast<float*>(a.x)[threadIdx.x] = 0; }
__global__ void local_memory_of_another_thread(Arguments a) {
  __shared__ float* pointers[64];
  float local = a.x[threadIdx.x];
  pointers[threadIdx.x] = &local;
  __syncthreads();
  a.out[threadIdx.x] = *pointers[63 - threadIdx.x];
  __syncthreads();
}
__global__ void trapped(Arguments a) {
  if (a.n > 0) __trap();
}
__global__ void long_shift(Arguments a) { a.out[threadIdx.x] = static_cast<float>(1 << (a.n / 2)); }
__global__ void overflow(Arguments a) { a.out[threadIdx.x] = static_cast<float>(2147483647 - 63 + a.n); }
__global__ void nothing(Arguments) {}
__global__ void __launch_bounds__(32) bounded(Arguments) {}
__global__ void large_shared_array(Arguments a) {
  __shared__ float tile[12289];
  tile[threadIdx.x] = a.x[threadIdx.x];
}

// ---- clusters ----

__device__ void give_to_the_next(Arguments a, float* slot, bool begins, bool ends) {
  const auto cluster = cooperative_groups::this_cluster();
  if (begins) cluster.sync();
  if (threadIdx.x == 0)
    *cluster.map_shared_rank(slot, (cluster.block_rank() + 1) % cluster.num_blocks()) = a.x[blockIdx.x];
  if (ends)
    cluster.sync();
  else
    __syncthreads();
  if (ends && threadIdx.x == 0) a.out[blockIdx.x] = *slot;
}
__global__ void ring(Arguments a) {
  __shared__ float slot;
  give_to_the_next(a, &slot, true, true);
}
__global__ void write_before_a_block_begins(Arguments a) {
  __shared__ float slot;
  give_to_the_next(a, &slot, false, true);
}
__global__ void write_after_a_block_ends(Arguments a) {
  __shared__ float slot;
  give_to_the_next(a, &slot, true, false);
}
__global__ void race_in_a_cluster(Arguments a) {
  __shared__ float slot;
  give_to_the_next(a, &slot, true, false);
  if (threadIdx.x == 0) a.out[blockIdx.x] = slot;
  cooperative_groups::this_cluster().sync();
}

cudaStream_t stream() {
  void* current = nullptr;
  aoti_torch_get_current_cuda_stream(0, &current);
  return static_cast<cudaStream_t>(current);
}

void check() {
  const cudaError_t error = cudaGetLastError();
  if (error != cudaSuccess) throw std::runtime_error(cudaGetErrorString(error));
}

void launch_clusters(void (*kernel)(Arguments), Arguments a, int blocks, bool allow_large) {
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim.x = static_cast<unsigned>(blocks);
  attribute.val.clusterDim.y = attribute.val.clusterDim.z = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(2 * blocks));
  config.blockDim = dim3(64);
  config.stream = stream();
  config.attrs = &attribute;
  config.numAttrs = 1;
  if (allow_large) cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1);
  cudaLaunchKernelEx(&config, kernel, a);
  check();
}

#define PROBE(kernel) \
  if (name == #kernel) kernel<<<1, 64, 0, stream()>>>(a)

void launch_probe(const std::string& name, Arguments a) {
  PROBE(reversed);
  PROBE(shuffle_up);
  PROBE(shuffle_down);
  PROBE(shuffle_across);
  PROBE(shuffle_from);
  PROBE(votes);
  PROBE(reductions);
  PROBE(tickets);
  PROBE(race_in_shared_memory);
  PROBE(race_behind_a_vote);
  PROBE(race_of_warps);
  PROBE(race_in_global_memory);
  PROBE(race_with_an_atomic);
  PROBE(half_of_a_block_at_a_barrier);
  PROBE(two_barriers);
  PROBE(missing_lanes);
  PROBE(part_of_a_warp);
  PROBE(deadlock);
  PROBE(endless_loop);
  PROBE(endless_barriers);
  PROBE(shared_memory_not_written);
  PROBE(past_a_tensor);
  PROBE(before_a_tensor);
  PROBE(past_a_shared_array);
  PROBE(past_a_member);
  PROBE(misaligned_word);
  PROBE(write_to_an_input);
  PROBE(local_memory_of_another_thread);
  PROBE(trapped);
  PROBE(long_shift);
  PROBE(overflow);
  PROBE(bounded);
  PROBE(large_shared_array);
  if (name == "race_of_blocks") race_of_blocks<<<2, 64, 0, stream()>>>(a);
  if (name == "no_blocks") nothing<<<0, 64, 0, stream()>>>(a);
  if (name == "too_many_threads") nothing<<<1, 1025, 0, stream()>>>(a);
  if (name == "dynamic_shared_memory") nothing<<<1, 64, 16, stream()>>>(a);
  if (name == "another_stream") nothing<<<1, 64>>>(a);
  if (name == "ring") launch_clusters(ring, a, 4, false);
  if (name == "large_cluster_not_allowed") launch_clusters(nothing, a, 16, false);
  if (name == "cluster_too_large") launch_clusters(ring, a, 16, true);
  if (name == "write_before_a_block_begins") launch_clusters(write_before_a_block_begins, a, 4, false);
  if (name == "write_after_a_block_ends") launch_clusters(write_after_a_block_ends, a, 4, false);
  if (name == "race_in_a_cluster") launch_clusters(race_in_a_cluster, a, 4, false);
}

torch::stable::Tensor probe(const torch::stable::Tensor& x, std::string name) {
  torch::stable::Tensor out = torch::stable::new_zeros(x, {x.numel() + 1});
  const int n = static_cast<int>(x.numel());
  const Arguments a{static_cast<const float*>(x.const_data_ptr()), static_cast<float*>(out.mutable_data_ptr()), n};
  if (name == "no_guard") {
    nothing<<<1, 64, 0, stream()>>>(a);
    check();
    return out;
  }
  torch::stable::accelerator::DeviceGuard guard(x.get_device_index());
  if (name == "unchecked_launch") {
    nothing<<<1, 64, 0, stream()>>>(a);
    return out;
  }
  launch_probe(name, a);
  check();
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(pointpeft, CUDA, m) { m.impl("probe", TORCH_BOX(&probe)); }
