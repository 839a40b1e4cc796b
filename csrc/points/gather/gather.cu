// Rows by index on CUDA, and the sum of rows by index that is its backward. Forward: rows are moved as words, as wide
// as a row and its address allow, a thread a word, so neighbouring threads move neighbouring words whatever the dtype.
// Backward: by atomics in at least float32, or, where the order of the sum must not vary, by a walk over each target's
// rows in order, which a stable sort of the indices has put side by side.
#include "common/device_checks.h"
#include "gather.cuh"

namespace pointpeft::gather {
namespace {

constexpr int kThreads = 256;

int64_t rows_of(const Tensor& idx) {
  int64_t rows = 1;
  for (int64_t d = 1; d < idx.dim(); ++d) rows *= idx.size(d);
  return rows;
}

int64_t blocks_for(int64_t count) { return (count + kThreads - 1) / kThreads; }

// One thread a word of the output; neighbouring threads move neighbouring words. Words are unsigned integers, as wide
// as a row allows. An index out of range, which nobody can report from here, gives zeros.
template <class Word>
__global__ void gather_kernel(const Word* features, const int64_t* idx, int64_t n, int64_t rows, int64_t words,
                              int64_t count, Word* out) {
  const int64_t e = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (e >= count) return;
  const int64_t from = source_of(e, idx, n, rows, words);
  out[e] = from >= 0 ? features[from] : Word{};
}

template <class Word>
void launch_gather(const Tensor& features, const Tensor& idx, Tensor& out, int64_t bytes, cudaStream_t stream) {
  const int64_t words = bytes / static_cast<int64_t>(sizeof(Word)), count = idx.numel() * words;
  gather_kernel<Word><<<blocks_for(count), kThreads, 0, stream>>>(
      static_cast<const Word*>(features.const_data_ptr()), idx.const_data_ptr<int64_t>(), features.size(1),
      rows_of(idx), words, count, static_cast<Word*>(out.mutable_data_ptr()));
  check_launch("gather");
}

Tensor gather(const Tensor& features, const Tensor& given_idx) {
  require_dim("features", features, 3);
  require_indices("idx", given_idx, "features", features);
  require_range_on_device("idx", given_idx, features.size(1));
  torch::stable::accelerator::DeviceGuard guard(features.get_device_index());
  const Tensor source = torch::stable::contiguous(features), idx = torch::stable::contiguous(given_idx);
  std::vector<int64_t> shape;
  for (int64_t d = 0; d < idx.dim(); ++d) shape.push_back(idx.size(d));
  shape.push_back(source.size(2));
  Tensor out = torch::stable::new_empty(source, shape, source.scalar_type());
  if (out.numel() == 0) return out;
  const cudaStream_t stream = current_stream(features);
  const int64_t bytes = source.size(2) * source.element_size();
  const auto aligned = [&](uintptr_t to) {
    return bytes % to == 0 && reinterpret_cast<uintptr_t>(source.const_data_ptr()) % to == 0;
  };
  if (aligned(16))
    launch_gather<uint4>(source, idx, out, bytes, stream);
  else if (aligned(4))
    launch_gather<uint32_t>(source, idx, out, bytes, stream);
  else if (aligned(2))
    launch_gather<uint16_t>(source, idx, out, bytes, stream);
  else
    launch_gather<uint8_t>(source, idx, out, bytes, stream);
  return out;
}

template <class T>
__device__ __forceinline__ auto widen(T value) {
  if constexpr (std::is_same_v<T, __half>)
    return __half2float(value);
  else if constexpr (std::is_same_v<T, __nv_bfloat16>)
    return __bfloat162float(value);
  else
    return value;
}

template <class T, class A>
__device__ __forceinline__ T narrow_to(A value) {
  if constexpr (std::is_same_v<T, __half>)
    return __float2half_rn(value);
  else if constexpr (std::is_same_v<T, __nv_bfloat16>)
    return __float2bfloat16_rn(value);
  else
    return value;
}

// One thread an entry of grad.
template <class T, class A>
__global__ void add_kernel(const T* grad, const int64_t* idx, int64_t n, int64_t rows, int64_t channels, int64_t count,
                           A* out) {
  const int64_t e = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (e >= count) return;
  const int64_t to = source_of(e, idx, n, rows, channels);
  if (to >= 0) atomicAdd(out + to, A(widen(grad[e])));
}

// The inverse index, from idx sorted within each cloud (stable, so rows of one target stand in order): a warp finds the
// rows of its target by bisection and sums them, its lanes over the channels.
template <class T, class A>
__global__ void sum_kernel(const T* grad, const int64_t* sorted, const int64_t* row_of, int64_t targets, int64_t n,
                           int64_t rows, int64_t channels, T* out) {
  const int64_t target = (static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x) / 32;
  if (target >= targets) return;
  const int64_t b = target / n, i = target % n;
  const int64_t* keys = sorted + b * rows;
  const int64_t first = first_of(keys, rows, i);
  for (int64_t c = threadIdx.x % 32; c < channels; c += 32) {
    A sum = 0;
    for (int64_t r = first; r < rows && keys[r] == i; ++r) {
      const int64_t row = row_of[b * rows + r];
      if (row >= 0 && row < rows) sum += widen(grad[(b * rows + row) * channels + c]);
    }
    out[target * channels + c] = narrow_to<T>(sum);
  }
}

template <class Body>
void dispatch_device(ScalarType dtype, Body&& body) {
  switch (dtype) {
    case ScalarType::Float:
      return body(float{}, float{});
    case ScalarType::Double:
      return body(double{}, double{});
    case ScalarType::Half:
      return body(__half{}, float{});
    case ScalarType::BFloat16:
      return body(__nv_bfloat16{}, float{});
    default:
      fail("grad must be float32, float64, float16 or bfloat16");
  }
}

Tensor gather_backward(const Tensor& given_grad, const Tensor& given_idx, int64_t n) {
  require_gathered(given_grad, given_idx, n);
  torch::stable::accelerator::DeviceGuard guard(given_grad.get_device_index());
  const Tensor grad = torch::stable::contiguous(given_grad), idx = torch::stable::contiguous(given_idx);
  const int64_t batch = idx.size(0), channels = grad.size(grad.dim() - 1), rows = rows_of(idx);
  const ScalarType wide = grad.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
  Tensor out = torch::stable::new_zeros(grad, {batch, n, channels}, wide);
  const int64_t count = grad.numel();
  if (count == 0) return torch::stable::to(out, grad.scalar_type());
  const cudaStream_t stream = current_stream(grad);
  dispatch_device(grad.scalar_type(), [&](auto type, auto accumulate) {
    using T = decltype(type);
    using A = decltype(accumulate);
    add_kernel<T, A><<<blocks_for(count), kThreads, 0, stream>>>(static_cast<const T*>(grad.const_data_ptr()),
                                                                 idx.const_data_ptr<int64_t>(), n, rows, channels,
                                                                 count, static_cast<A*>(out.mutable_data_ptr()));
    check_launch("gather_backward");
  });
  return torch::stable::to(out, grad.scalar_type());
}

// As gather_backward, with `sorted` and `row_of` from a stable sort of idx (B, rows).
Tensor gather_backward_sorted(const Tensor& given_grad, const Tensor& given_sorted, const Tensor& given_row_of,
                              int64_t n) {
  require_floating("grad", given_grad);
  require(n >= 0, "n must be at least 0, got ", n);
  require_dim("sorted", given_sorted, 2);
  require_order(given_grad, given_sorted.size(0), given_sorted.size(1), given_sorted, given_row_of);
  const int64_t entries = given_sorted.size(0) * given_sorted.size(1);
  if (given_grad.dim() < 2 || given_grad.numel() != entries * given_grad.size(given_grad.dim() - 1))
    fail("grad must have ", entries, " rows of channels, one an entry of sorted, got shape ", shape_text(given_grad));
  torch::stable::accelerator::DeviceGuard guard(given_grad.get_device_index());
  const Tensor grad = torch::stable::contiguous(given_grad), sorted = torch::stable::contiguous(given_sorted);
  const Tensor row_of = torch::stable::contiguous(given_row_of);
  const int64_t batch = sorted.size(0), rows = sorted.size(1), channels = grad.size(grad.dim() - 1);
  Tensor out = torch::stable::new_empty(grad, {batch, n, channels}, grad.scalar_type());
  if (out.numel() == 0) return out;
  const cudaStream_t stream = current_stream(grad);
  dispatch_device(grad.scalar_type(), [&](auto type, auto accumulate) {
    using T = decltype(type);
    using A = decltype(accumulate);
    sum_kernel<T, A><<<blocks_for(batch * n * 32), kThreads, 0, stream>>>(
        static_cast<const T*>(grad.const_data_ptr()), sorted.const_data_ptr<int64_t>(),
        row_of.const_data_ptr<int64_t>(), batch * n, n, rows, channels, static_cast<T*>(out.mutable_data_ptr()));
    check_launch("gather_backward");
  });
  return out;
}

}  // namespace
}  // namespace pointpeft::gather

STABLE_TORCH_LIBRARY_IMPL(pointpeft, CUDA, m) {
  m.impl("gather", TORCH_BOX(&pointpeft::gather::gather));
  m.impl("gather_backward", TORCH_BOX(&pointpeft::gather::gather_backward));
  m.impl("gather_backward_sorted", TORCH_BOX(&pointpeft::gather::gather_backward_sorted));
}
