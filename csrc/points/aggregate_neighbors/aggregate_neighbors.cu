// Gather and pool neighbours on CUDA without the (B, G, S, C) tensor between.
//   forward    a thread owns `width` channels (16 bytes where aligned) of one group: it reads S rows, writes once;
//              neighbouring threads own neighbouring channels, so every row is read in whole lines
//   backward   a thread owns `width` channels of one target: it finds by bisection, in idx sorted within the cloud, the
//              places that name its target, and sums them in order: no atomics, the same bits on every run
//   weights    a warp owns one (group, neighbour): its lanes share the channels
// No shared memory, no barrier. An index out of range, which nobody can report from here, counts as zeros.
#include "aggregate_neighbors.cuh"
#include "common/device_checks.h"

namespace pointpeft::aggregate_neighbors {
namespace {

constexpr int kThreads = 256;

int64_t blocks_for(int64_t count) {
  const int64_t blocks = (count + kThreads - 1) / kThreads;
  require(blocks <= std::numeric_limits<int32_t>::max(), "features and idx are too large for one launch");
  return blocks;
}

template <int64_t mode, int width, class T, class A, class Arg>
__global__ void __launch_bounds__(kThreads)
    pool_kernel(const T* features, const int64_t* idx, const A* weights, int64_t n, int64_t groups, int64_t s,
                int64_t channels, int64_t count, T* out, Arg* argmax) {
  const int64_t e = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (e < count) pool_channels<mode, width>(e, features, idx, weights, n, groups, s, channels, out, argmax);
}

template <int64_t mode, int width, class T, class A, class Arg>
__global__ void __launch_bounds__(kThreads)
    sum_kernel(const T* grad, const int64_t* sorted, const int64_t* row_of, const A* weights, const Arg* argmax,
               int64_t n, int64_t groups, uint32_t s, int64_t channels, int64_t count, T* out) {
  const int64_t e = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (e < count) sum_channels<mode, width>(e, grad, sorted, row_of, weights, argmax, n, groups, s, channels, out);
}

template <class T, class A>
__global__ void __launch_bounds__(kThreads)
    weights_kernel(const T* grad, const T* features, const int64_t* idx, int64_t n, int64_t groups, int64_t s,
                   int64_t channels, int64_t count, A* out) {
  const int64_t e = (int64_t(blockIdx.x) * kThreads + threadIdx.x) / 32;
  if (e >= count) return;  // the same in all lanes of the warp
  const int lane = threadIdx.x % 32;
  const int64_t g = e / s, i = idx[e];
  A sum = 0;
  if (i >= 0 && i < n) {
    const T *a = grad + g * channels, *row = features + (g / groups * n + i) * channels;
    for (int64_t c = lane; c < channels; c += 32) sum += A(a[c]) * A(row[c]);
  }
  for (int offset = 16; offset > 0; offset /= 2) sum += __shfl_down_sync(0xffffffffu, sum, offset);
  if (lane == 0) out[e] = sum;
}

// Calls body(mode, width, Arg{}) with constants: packs of 16 bytes where rows and addresses allow them, and for the
// places of a maximum bytes where S <= 256. The other modes have no places, so one Arg serves them.
template <class T, class Body>
void dispatch_kernel(int64_t mode, int64_t channels, std::initializer_list<const void*> addresses, bool narrow,
                     Body&& body) {
  constexpr int kWide = 16 / sizeof(T);
  bool wide = channels % kWide == 0;
  for (const void* address : addresses) wide = wide && reinterpret_cast<uintptr_t>(address) % 16 == 0;
  dispatch_mode(mode, [&](auto fixed) {
    const auto with_width = [&](auto width) {
      if constexpr (decltype(fixed)::value == kMax)
        if (!narrow) return body(fixed, width, int32_t{});
      body(fixed, width, uint8_t{});
    };
    wide ? with_width(std::integral_constant<int, kWide>{}) : with_width(std::integral_constant<int, 1>{});
  });
}

std::tuple<Tensor, Tensor> aggregate_neighbors(const Tensor& given_features, const Tensor& given_idx,
                                               const std::optional<Tensor>& given_weights, int64_t mode,
                                               bool keep_argmax) {
  require_clouds("features", given_features, -1);
  require_pooling(given_idx, given_weights, mode, "features", given_features);
  require_range_on_device("idx", given_idx, given_features.size(1));
  torch::stable::accelerator::DeviceGuard guard(given_features.get_device_index());
  const Tensor features = torch::stable::contiguous(given_features), idx = torch::stable::contiguous(given_idx);
  const int64_t batch = features.size(0), n = features.size(1), channels = features.size(2);
  const int64_t groups = idx.size(1), s = idx.size(2);
  Tensor out = torch::stable::new_empty(features, {batch, groups, channels}, features.scalar_type());
  const bool keep = mode == kMax && keep_argmax, narrow = s <= 256;
  Tensor argmax = torch::stable::new_empty(features, {keep ? batch : 0, groups, channels},
                                           narrow ? ScalarType::Byte : ScalarType::Int);
  std::optional<Tensor> weights;
  if (given_weights) weights = torch::stable::contiguous(*given_weights);
  if (out.numel() == 0) return {out, argmax};
  const cudaStream_t stream = current_stream(features);
  dispatch_floating("features", features.scalar_type(), [&](auto type) {
    using T = decltype(type);
    using A = Accumulate<T>;
    const T* from = static_cast<const T*>(features.const_data_ptr());
    T* to = static_cast<T*>(out.mutable_data_ptr());
    void* places = keep ? argmax.mutable_data_ptr() : nullptr;
    dispatch_kernel<T>(mode, channels, {from, to, places}, narrow, [&](auto fixed, auto width, auto arg) {
      const int64_t count = batch * groups * (channels / width);
      pool_kernel<decltype(fixed)::value, decltype(width)::value, T, A><<<blocks_for(count), kThreads, 0, stream>>>(
          from, idx.const_data_ptr<int64_t>(), weights ? static_cast<const A*>(weights->const_data_ptr()) : nullptr, n,
          groups, s, channels, count, to, static_cast<decltype(arg)*>(places));
      check_launch("aggregate_neighbors");
    });
  });
  return {out, argmax};
}

Tensor aggregate_neighbors_backward(const Tensor& given_grad, const Tensor& given_idx,
                                    const std::optional<Tensor>& given_weights,
                                    const std::optional<Tensor>& given_argmax,
                                    const std::optional<Tensor>& given_sorted,
                                    const std::optional<Tensor>& given_row_of, int64_t n, int64_t mode) {
  require_pooled(given_grad, given_idx, given_weights, given_argmax, n, mode);
  require(given_sorted && given_row_of, "sorted and row_of must be given on CUDA: a stable sort of idx (B, G * S)");
  require_order(given_grad, given_idx.size(0), given_idx.size(1) * given_idx.size(2), *given_sorted, *given_row_of);
  torch::stable::accelerator::DeviceGuard guard(given_grad.get_device_index());
  const Tensor grad = torch::stable::contiguous(given_grad);
  const int64_t batch = grad.size(0), groups = grad.size(1), channels = grad.size(2), s = given_idx.size(2);
  require(groups * s <= std::numeric_limits<uint32_t>::max(), "idx must have fewer than 2^32 entries a cloud");
  const Tensor sorted = torch::stable::contiguous(*given_sorted), row_of = torch::stable::contiguous(*given_row_of);
  std::optional<Tensor> weights, argmax;
  if (given_weights) weights = torch::stable::contiguous(*given_weights);
  if (given_argmax) argmax = torch::stable::contiguous(*given_argmax);
  Tensor out = torch::stable::new_empty(grad, {batch, n, channels}, grad.scalar_type());
  if (out.numel() == 0) return out;
  const cudaStream_t stream = current_stream(grad);
  dispatch_floating("grad", grad.scalar_type(), [&](auto type) {
    using T = decltype(type);
    using A = Accumulate<T>;
    const T* from = static_cast<const T*>(grad.const_data_ptr());
    T* to = static_cast<T*>(out.mutable_data_ptr());
    const void* places = argmax ? argmax->const_data_ptr() : nullptr;
    const bool narrow = !argmax || argmax->scalar_type() == ScalarType::Byte;
    dispatch_kernel<T>(mode, channels, {from, to, places}, narrow, [&](auto fixed, auto width, auto arg) {
      const int64_t count = batch * n * (channels / width);
      sum_kernel<decltype(fixed)::value, decltype(width)::value, T, A><<<blocks_for(count), kThreads, 0, stream>>>(
          from, sorted.const_data_ptr<int64_t>(), row_of.const_data_ptr<int64_t>(),
          weights ? static_cast<const A*>(weights->const_data_ptr()) : nullptr,
          static_cast<const decltype(arg)*>(places), n, groups, static_cast<uint32_t>(s), channels, count, to);
      check_launch("aggregate_neighbors_backward");
    });
  });
  return out;
}

Tensor aggregate_neighbors_backward_weights(const Tensor& given_grad, const Tensor& given_features,
                                            const Tensor& given_idx) {
  require_pooled_weights(given_grad, given_features, given_idx);
  torch::stable::accelerator::DeviceGuard guard(given_grad.get_device_index());
  const Tensor grad = torch::stable::contiguous(given_grad), features = torch::stable::contiguous(given_features);
  const Tensor idx = torch::stable::contiguous(given_idx);
  const int64_t batch = grad.size(0), groups = grad.size(1), channels = grad.size(2), s = idx.size(2);
  const ScalarType wide = grad.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
  Tensor out = torch::stable::new_empty(grad, {batch, groups, s}, wide);
  const int64_t count = out.numel();
  if (count == 0) return out;
  const cudaStream_t stream = current_stream(grad);
  dispatch_floating("grad", grad.scalar_type(), [&](auto type) {
    using T = decltype(type);
    using A = Accumulate<T>;
    weights_kernel<T, A><<<blocks_for(count * 32), kThreads, 0, stream>>>(
        static_cast<const T*>(grad.const_data_ptr()), static_cast<const T*>(features.const_data_ptr()),
        idx.const_data_ptr<int64_t>(), features.size(1), groups, s, channels, count,
        static_cast<A*>(out.mutable_data_ptr()));
    check_launch("aggregate_neighbors_backward_weights");
  });
  return out;
}

}  // namespace
}  // namespace pointpeft::aggregate_neighbors

STABLE_TORCH_LIBRARY_IMPL(pointpeft, CUDA, m) {
  m.impl("aggregate_neighbors", TORCH_BOX(&pointpeft::aggregate_neighbors::aggregate_neighbors));
  m.impl("aggregate_neighbors_backward", TORCH_BOX(&pointpeft::aggregate_neighbors::aggregate_neighbors_backward));
  m.impl("aggregate_neighbors_backward_weights",
         TORCH_BOX(&pointpeft::aggregate_neighbors::aggregate_neighbors_backward_weights));
}
