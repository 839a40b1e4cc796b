// Shared by all operations: argument checks, dispatch over dtypes, threads and launches. LibTorch stable ABI only.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <memory>
#include <new>
#include <optional>
#include <sstream>
#include <stdexcept>
#include <string>
#include <tuple>
#include <type_traits>
#include <vector>

namespace pointpeft {

using torch::headeronly::BFloat16;
using torch::headeronly::Half;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// Begins the message of an error about an argument, which Python sees as ValueError: pybind11 makes one of
// std::invalid_argument. `ops._library.call` takes the prefix off.
constexpr const char* kBadArgument = "pointpeft: ";

template <class... Parts>
[[noreturn]] inline void fail(const Parts&... parts) {
  std::ostringstream text;
  text << kBadArgument;
  (text << ... << parts);
  throw std::invalid_argument(text.str());
}

template <class... Parts>
inline void require(bool condition, const Parts&... parts) {
  if (!condition) fail(parts...);
}

// float for everything that is stored in 32 bits or fewer, double for double: distances never accumulate in less.
template <class T>
using Accumulate = std::conditional_t<std::is_same_v<T, double>, double, float>;

// Calls `body(T{})` with T the C++ type of a floating dtype.
template <class Body>
inline void dispatch_floating(const char* argument, ScalarType dtype, Body&& body) {
  switch (dtype) {
    case ScalarType::Float:
      return body(float{});
    case ScalarType::Double:
      return body(double{});
    case ScalarType::Half:
      return body(Half{});
    case ScalarType::BFloat16:
      return body(BFloat16{});
    default:
      fail(argument, " must be float32, float64, float16 or bfloat16");
  }
}

// An array that begins with a cache line: a vector of 64 bytes across two lines would cost two accesses, and malloc
// gives multiples of 16 only.
struct FreeAligned {
  void operator()(void* array) const { ::operator delete(array, std::align_val_t{64}); }
};

template <class A>
using Aligned = std::unique_ptr<A[], FreeAligned>;

// Without values yet.
template <class A>
inline Aligned<A> aligned_array(int64_t count) {
  static_assert(std::is_trivially_destructible_v<A>);
  return Aligned<A>(static_cast<A*>(::operator new(count * sizeof(A), std::align_val_t{64})));
}

// Operations that others are built of: defined once in each library, by the .cpp and by the .cu of their name.
namespace furthest_point_sample {
Tensor sample(const Tensor& xyz, int64_t num_samples, const std::optional<Tensor>& lengths,
              const std::optional<Tensor>& starts, int64_t start, double min_sq_norm);
}

namespace knn {
// The k nearest support points of each query, into tensors made by the caller: squared distances (B, M, k) where
// wanted, indices (B, M, k), and where wanted support[idx] - query (B, M, k, C) in the dtype of support, for few
// channels only.
void nearest(const Tensor& query, const Tensor& support, int64_t k, const std::optional<Tensor>& lengths,
             Tensor* sq_distance, Tensor& idx, Tensor* patches);
}  // namespace knn

// How many of M queries take part in one product with N points, so that its result stays near 64 MiB.
inline int64_t queries_a_product(int64_t batch, int64_t m, int64_t n) {
  return std::max<int64_t>(1, std::min<int64_t>(m, (int64_t{1} << 24) / std::max<int64_t>(1, batch * n)));
}

}  // namespace pointpeft

#if defined(USE_CUDA)
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/macros.h>

namespace pointpeft {

// The stream that torch has current on the device of `tensor`.
inline cudaStream_t current_stream(const Tensor& tensor) {
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(tensor.get_device_index(), &stream));
  return static_cast<cudaStream_t>(stream);
}

inline void check_launch(const char* kernel) {
  const cudaError_t error = cudaGetLastError();
  if (error != cudaSuccess) throw std::runtime_error(std::string(kernel) + ": " + cudaGetErrorString(error));
}

}  // namespace pointpeft
#endif
