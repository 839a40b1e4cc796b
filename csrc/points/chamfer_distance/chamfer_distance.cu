// The per-point parts of the Chamfer distance on CUDA. One thread stands for one point and walks the other cloud
// through tiles in shared memory, which its block loads together, so each coordinate is read from L2 once a block. The
// gradient of a point sums over the points whose nearest it is, which the same walk finds among their indices: no
// atomics, the same bits on every run. What a thread does stands in chamfer_distance.cuh.
#include "chamfer_distance.cuh"
#include "common/device_checks.h"

namespace pointpeft::chamfer_distance {
namespace {

// As many threads as a small cloud has points: patches of 32 are one warp a block.
int threads_for(int64_t n) { return n <= 32 ? 32 : n <= 64 ? 64 : kMostThreads; }

Clouds clouds_of(const Tensor& t) { return {t.const_data_ptr(), t.size(1), t.stride(0), t.stride(1), t.stride(2)}; }

// Block (b, chunk) of the points.
__device__ __forceinline__ Worker worker(int64_t chunks) {
  return {blockIdx.x / chunks, blockIdx.x % chunks * blockDim.x + threadIdx.x, static_cast<int>(threadIdx.x),
          static_cast<int>(blockDim.x)};
}

template <class T, class A>
__global__ void __launch_bounds__(kMostThreads)
    nearest_kernel(Clouds queries, Clouds support, int64_t chunks, A* sq_distance, int64_t* idx) {
  __shared__ Tile<A> tile;
  nearest_point<T>(queries, support, worker(chunks), tile, sq_distance, idx);
}

template <class T, class A>
void launch_nearest(const Tensor& queries, const Tensor& support, Tensor& sq_distance, Tensor& idx,
                    cudaStream_t stream) {
  const int threads = threads_for(queries.size(1));
  const int64_t chunks = (queries.size(1) + threads - 1) / threads;
  nearest_kernel<T, A><<<queries.size(0) * chunks, threads, 0, stream>>>(
      clouds_of(queries), clouds_of(support), chunks, static_cast<A*>(sq_distance.mutable_data_ptr()),
      idx.mutable_data_ptr<int64_t>());
  check_launch("chamfer_distance");
}

std::tuple<Tensor, Tensor, Tensor, Tensor> chamfer_distance(const Tensor& a, const Tensor& b) {
  require_pair(a, b);
  require_finite_on_device("a", a, std::nullopt);
  require_finite_on_device("b", b, std::nullopt);
  torch::stable::accelerator::DeviceGuard guard(a.get_device_index());
  const int64_t batch = a.size(0), n = a.size(1), m = b.size(1);
  const ScalarType wide = a.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
  Tensor sq_a = torch::stable::new_empty(a, {batch, n}, wide), sq_b = torch::stable::new_empty(a, {batch, m}, wide);
  Tensor idx_a = torch::stable::new_empty(a, {batch, n}, ScalarType::Long);
  Tensor idx_b = torch::stable::new_empty(a, {batch, m}, ScalarType::Long);
  if (batch == 0) return {sq_a, idx_a, sq_b, idx_b};
  const cudaStream_t stream = current_stream(a);
  dispatch_floating("a", a.scalar_type(), [&](auto type) {
    using T = decltype(type);
    using A = Accumulate<T>;
    launch_nearest<T, A>(a, b, sq_a, idx_a, stream);
    launch_nearest<T, A>(b, a, sq_b, idx_b, stream);
  });
  return {sq_a, idx_a, sq_b, idx_b};
}

template <class T, class A>
__global__ void __launch_bounds__(kMostThreads)
    backward_kernel(Clouds points, Clouds other, int64_t chunks, Side<A> own, Side<A> theirs, T* out) {
  __shared__ int64_t tile[kMostThreads];
  gradient_of_point<T>(points, other, own, theirs, worker(chunks), tile, out);
}

template <class A>
Side<A> side_of(const Tensor& grad, const Tensor& idx) {
  return {static_cast<const A*>(grad.const_data_ptr()), grad.stride(0), grad.stride(1), idx.const_data_ptr<int64_t>()};
}

template <class T, class A>
void launch_backward(const Tensor& points, const Tensor& other, const Side<A>& own, const Side<A>& theirs, Tensor& out,
                     cudaStream_t stream) {
  const int threads = threads_for(points.size(1));
  const int64_t chunks = (points.size(1) + threads - 1) / threads;
  backward_kernel<T, A><<<points.size(0) * chunks, threads, 0, stream>>>(
      clouds_of(points), clouds_of(other), chunks, own, theirs, static_cast<T*>(out.mutable_data_ptr()));
  check_launch("chamfer_distance_backward");
}

std::tuple<Tensor, Tensor> chamfer_distance_backward(const Tensor& grad_a, const Tensor& grad_b, const Tensor& a,
                                                     const Tensor& b, const Tensor& given_idx_a,
                                                     const Tensor& given_idx_b) {
  require_pair(a, b);
  require_side("grad_a", grad_a, "idx_a", given_idx_a, a);
  require_side("grad_b", grad_b, "idx_b", given_idx_b, b);
  torch::stable::accelerator::DeviceGuard guard(a.get_device_index());
  const Tensor idx_a = torch::stable::contiguous(given_idx_a), idx_b = torch::stable::contiguous(given_idx_b);
  Tensor out_a = torch::stable::new_empty(a, {a.size(0), a.size(1), 3}, a.scalar_type());
  Tensor out_b = torch::stable::new_empty(b, {b.size(0), b.size(1), 3}, b.scalar_type());
  if (a.size(0) == 0) return {out_a, out_b};
  const cudaStream_t stream = current_stream(a);
  dispatch_floating("a", a.scalar_type(), [&](auto type) {
    using T = decltype(type);
    using A = Accumulate<T>;
    const Side<A> side_a = side_of<A>(grad_a, idx_a), side_b = side_of<A>(grad_b, idx_b);
    launch_backward<T, A>(a, b, side_a, side_b, out_a, stream);
    launch_backward<T, A>(b, a, side_b, side_a, out_b, stream);
  });
  return {out_a, out_b};
}

}  // namespace
}  // namespace pointpeft::chamfer_distance

STABLE_TORCH_LIBRARY_IMPL(pointpeft, CUDA, m) {
  m.impl("chamfer_distance", TORCH_BOX(&pointpeft::chamfer_distance::chamfer_distance));
  m.impl("chamfer_distance_backward", TORCH_BOX(&pointpeft::chamfer_distance::chamfer_distance_backward));
}
