// Shared by all operations: argument checks, dispatch over dtypes, threads and launches. LibTorch stable ABI only.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <memory>
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

// Thrown with a message of its own; the Python side turns messages with this prefix into ValueError.
constexpr const char* kBadArgument = "pointpeft: ";

template <class... Parts>
[[noreturn]] inline void fail(const Parts&... parts) {
  std::ostringstream text;
  text << kBadArgument;
  (text << ... << parts);
  throw std::runtime_error(text.str());
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

// How wide the CPU kernels may go; POINTPEFT_CPU_LEVEL=portable|avx2|avx512 lowers it (it never raises it).
enum class CpuLevel { portable = 0, avx2 = 1, avx512 = 2 };

inline CpuLevel supported_cpu_level() {
#if defined(__x86_64__)
  static const CpuLevel level = [] {
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq"))
      return CpuLevel::avx512;
    if (__builtin_cpu_supports("avx2")) return CpuLevel::avx2;
    return CpuLevel::portable;
  }();
  return level;
#else
  return CpuLevel::portable;
#endif
}

inline CpuLevel cpu_level() {
  const CpuLevel supported = supported_cpu_level();
  const char* wish = std::getenv("POINTPEFT_CPU_LEVEL");
  if (wish == nullptr || *wish == '\0') return supported;
  const std::string_view name(wish);
  CpuLevel asked = CpuLevel::portable;
  if (name == "avx512")
    asked = CpuLevel::avx512;
  else if (name == "avx2")
    asked = CpuLevel::avx2;
  else
    require(name == "portable", "POINTPEFT_CPU_LEVEL must be portable, avx2 or avx512, got ", wish);
  return std::min(asked, supported);
}

inline const char* cpu_level_name(CpuLevel level) {
  return level == CpuLevel::avx512 ? "avx512" : level == CpuLevel::avx2 ? "avx2" : "portable";
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
