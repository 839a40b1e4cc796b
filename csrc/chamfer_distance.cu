// The per-point parts of the Chamfer distance on CUDA. Both kernels have one thread an output point and walk the other
// cloud through tiles in shared memory; two barriers a tile. Sums go in the order of the points, without atomics: the
// same bits on every run.
#include "pointpeft.h"

namespace pointpeft {
namespace {

constexpr int kMostThreads = 128;

// As many threads as a small cloud has points: patches of 32 are one warp a block.
int threads_for(int64_t n) { return n <= 32 ? 32 : n <= 64 ? 64 : kMostThreads; }

struct Cloud {
  Cloud(const Tensor& t, const void* pointer)
      : data(pointer), length(t.size(1)), stride_b(t.stride(0)), stride_n(t.stride(1)), stride_c(t.stride(2)) {}
  const void* data;
  int64_t length, stride_b, stride_n, stride_c;
};

template <class T, class A>
__device__ __forceinline__ void load_point(const Cloud& cloud, int64_t b, int64_t i, A& x, A& y, A& z) {
  const T* p = static_cast<const T*>(cloud.data) + b * cloud.stride_b + i * cloud.stride_n;
  x = static_cast<A>(p[0]);
  y = static_cast<A>(p[cloud.stride_c]);
  z = static_cast<A>(p[2 * cloud.stride_c]);
}

// Block (b, chunk) of queries. A NaN or infinite distance is never below the best: non-finite points are not taken.
template <class T, class A>
__global__ void __launch_bounds__(kMostThreads)
    nearest_kernel(Cloud queries, Cloud support, int64_t chunks, A* sq_distance, int64_t* idx) {
  __shared__ A tile_x[kMostThreads], tile_y[kMostThreads], tile_z[kMostThreads];
  const int64_t b = blockIdx.x / chunks, i = blockIdx.x % chunks * blockDim.x + threadIdx.x;
  A x = 0, y = 0, z = 0, best = static_cast<A>(INFINITY);
  if (i < queries.length) load_point<T>(queries, b, i, x, y, z);
  int64_t at = 0;
  for (int64_t base = 0; base < support.length; base += blockDim.x) {
    if (base + threadIdx.x < support.length)
      load_point<T>(support, b, base + threadIdx.x, tile_x[threadIdx.x], tile_y[threadIdx.x], tile_z[threadIdx.x]);
    __syncthreads();
    const int64_t left = support.length - base;
    const int count = left < blockDim.x ? static_cast<int>(left) : static_cast<int>(blockDim.x);
    int near = -1;
#pragma unroll 8
    for (int j = 0; j < count; ++j) {
      const A dx = x - tile_x[j], dy = y - tile_y[j], dz = z - tile_z[j];
      const A d = dx * dx + dy * dy + dz * dz;
      if (d < best) {
        best = d;
        near = j;
      }
    }
    if (near >= 0) at = base + near;
    __syncthreads();
  }
  if (i < queries.length) {
    sq_distance[b * queries.length + i] = best;
    idx[b * queries.length + i] = at;
  }
}

template <class T, class A>
void launch_nearest(const Tensor& queries, const Tensor& support, Tensor& sq_distance, Tensor& idx,
                    cudaStream_t stream) {
  const int threads = threads_for(queries.size(1));
  const int64_t chunks = (queries.size(1) + threads - 1) / threads;
  nearest_kernel<T, A><<<queries.size(0) * chunks, threads, 0, stream>>>(
      Cloud(queries, queries.const_data_ptr()), Cloud(support, support.const_data_ptr()), chunks,
      static_cast<A*>(sq_distance.mutable_data_ptr()), idx.mutable_data_ptr<int64_t>());
  check_launch("chamfer_distance");
}

std::tuple<Tensor, Tensor, Tensor, Tensor> chamfer_distance(const Tensor& a, const Tensor& b) {
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

// d |p - q|^2 = 2 (p - q) (dp - dq): point i of `points` takes part in its own pair, and in those of the points of
// `other` whose nearest it is, which a walk over their indices finds.
template <class T, class A>
__global__ void __launch_bounds__(kMostThreads)
    backward_kernel(Cloud points, Cloud other, int64_t chunks, const A* grad_points, int64_t points_b, int64_t points_n,
                    const A* grad_other, int64_t other_b, int64_t other_n, const int64_t* idx_points,
                    const int64_t* idx_other, T* out) {
  __shared__ int64_t tile[kMostThreads];
  const int64_t b = blockIdx.x / chunks, i = blockIdx.x % chunks * blockDim.x + threadIdx.x;
  A x = 0, y = 0, z = 0, sum_x = 0, sum_y = 0, sum_z = 0;
  const auto add = [&](int64_t j, A grad) {
    A ox, oy, oz;
    load_point<T>(other, b, j, ox, oy, oz);
    sum_x += 2 * grad * (x - ox);
    sum_y += 2 * grad * (y - oy);
    sum_z += 2 * grad * (z - oz);
  };
  if (i < points.length) {
    load_point<T>(points, b, i, x, y, z);
    add(idx_points[b * points.length + i], grad_points[b * points_b + i * points_n]);
  }
  for (int64_t base = 0; base < other.length; base += blockDim.x) {
    if (base + threadIdx.x < other.length) tile[threadIdx.x] = idx_other[b * other.length + base + threadIdx.x];
    __syncthreads();
    const int64_t left = other.length - base;
    const int count = left < blockDim.x ? static_cast<int>(left) : static_cast<int>(blockDim.x);
    if (i < points.length)
      for (int j = 0; j < count; ++j)
        if (tile[j] == i) add(base + j, grad_other[b * other_b + (base + j) * other_n]);
    __syncthreads();
  }
  if (i < points.length) {
    T* to = out + (b * points.length + i) * 3;
    to[0] = static_cast<T>(sum_x);
    to[1] = static_cast<T>(sum_y);
    to[2] = static_cast<T>(sum_z);
  }
}

template <class T, class A>
void launch_backward(const Tensor& points, const Tensor& other, const Tensor& grad_points, const Tensor& grad_other,
                     const Tensor& idx_points, const Tensor& idx_other, Tensor& out, cudaStream_t stream) {
  const int threads = threads_for(points.size(1));
  const int64_t chunks = (points.size(1) + threads - 1) / threads;
  backward_kernel<T, A><<<points.size(0) * chunks, threads, 0, stream>>>(
      Cloud(points, points.const_data_ptr()), Cloud(other, other.const_data_ptr()), chunks,
      static_cast<const A*>(grad_points.const_data_ptr()), grad_points.stride(0), grad_points.stride(1),
      static_cast<const A*>(grad_other.const_data_ptr()), grad_other.stride(0), grad_other.stride(1),
      idx_points.const_data_ptr<int64_t>(), idx_other.const_data_ptr<int64_t>(),
      static_cast<T*>(out.mutable_data_ptr()));
  check_launch("chamfer_distance_backward");
}

std::tuple<Tensor, Tensor> chamfer_distance_backward(const Tensor& grad_a, const Tensor& grad_b, const Tensor& a,
                                                     const Tensor& b, const Tensor& given_idx_a,
                                                     const Tensor& given_idx_b) {
  torch::stable::accelerator::DeviceGuard guard(a.get_device_index());
  const Tensor idx_a = torch::stable::contiguous(given_idx_a), idx_b = torch::stable::contiguous(given_idx_b);
  Tensor out_a = torch::stable::new_empty(a, {a.size(0), a.size(1), 3}, a.scalar_type());
  Tensor out_b = torch::stable::new_empty(b, {b.size(0), b.size(1), 3}, b.scalar_type());
  if (a.size(0) == 0) return {out_a, out_b};
  const cudaStream_t stream = current_stream(a);
  dispatch_floating("a", a.scalar_type(), [&](auto type) {
    using T = decltype(type);
    using A = Accumulate<T>;
    launch_backward<T, A>(a, b, grad_a, grad_b, idx_a, idx_b, out_a, stream);
    launch_backward<T, A>(b, a, grad_b, grad_a, idx_b, idx_a, out_b, stream);
  });
  return {out_a, out_b};
}

}  // namespace
}  // namespace pointpeft

STABLE_TORCH_LIBRARY_IMPL(pointpeft, CUDA, m) {
  m.impl("chamfer_distance", TORCH_BOX(&pointpeft::chamfer_distance));
  m.impl("chamfer_distance_backward", TORCH_BOX(&pointpeft::chamfer_distance_backward));
}
