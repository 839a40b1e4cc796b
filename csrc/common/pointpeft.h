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

#if defined(__x86_64__) && defined(__linux__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

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

// Inlined into callers that raise the vector level by a target attribute, and compiled for that level there.
#define POINTPEFT_INLINE inline __attribute__((always_inline))

// Ends the string of a target attribute with AVX-512: vectors of 512 bits instead of 256 where GCC vectorizes a loop.
// clang ignores the whole attribute because of it, and takes -mprefer-vector-width=512 from setup.py instead.
#if defined(__clang__)
#define POINTPEFT_WHOLE_VECTORS ""
#else
#define POINTPEFT_WHOLE_VECTORS ",prefer-vector-width=512"
#endif

// Whether the compiler has the instructions of AMX.
#if defined(__x86_64__) && defined(__linux__) && !defined(POINTPEFT_NO_AMX)
#if defined(__clang__) ? __clang_major__ >= 14 : __GNUC__ >= 11
#define POINTPEFT_HAS_AMX 1
#endif
#endif

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

// Copies strided points into rows x, y, z; returns whether all are finite. The check is a maximum over the bits without
// sign, which vectorises; strides known at compile time make the whole loop vectorise.
template <class T, class A>
POINTPEFT_INLINE bool load_strided(const T* __restrict from, int64_t stride_n, int64_t stride_c, int64_t n,
                                   A* __restrict x, A* __restrict y, A* __restrict z) {
  using Bits = std::conditional_t<sizeof(A) == 8, int64_t, int32_t>;
  constexpr A kInfinity = std::numeric_limits<A>::infinity();
  constexpr Bits kNoSign = std::numeric_limits<Bits>::max();
  Bits most = 0, infinity;
  std::memcpy(&infinity, &kInfinity, sizeof(A));
  for (int64_t i = 0; i < n; ++i) {
    const A p[3] = {static_cast<A>(from[i * stride_n]), static_cast<A>(from[i * stride_n + stride_c]),
                    static_cast<A>(from[i * stride_n + 2 * stride_c])};
    Bits bits[3];
    std::memcpy(bits, p, sizeof(p));
    x[i] = p[0];
    y[i] = p[1];
    z[i] = p[2];
    for (int c = 0; c < 3; ++c) most = (bits[c] & kNoSign) > most ? (bits[c] & kNoSign) : most;
  }
  return most < infinity;
}

template <class T, class A>
POINTPEFT_INLINE bool load_rows(const T* from, int64_t stride_n, int64_t stride_c, int64_t n, A* x, A* y, A* z) {
  if (stride_c == 1 && stride_n == 3) return load_strided(from, 3, 1, n, x, y, z);
  if (stride_n == 1) return load_strided(from, 1, stride_c, n, x, y, z);
  return load_strided(from, stride_n, stride_c, n, x, y, z);
}

// How wide the CPU kernels may go; POINTPEFT_CPU_LEVEL=portable|avx2|avx512|amx lowers it (it never raises it).
enum class CpuLevel { portable = 0, avx2 = 1, avx512 = 2, amx = 3 };

#if defined(__x86_64__)
// Whether there are tiles of bfloat16, and the system lets this process use them: it has to be asked.
inline bool may_use_amx() {
#if defined(POINTPEFT_HAS_AMX)
  unsigned a = 0, b = 0, c = 0, d = 0;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || (d >> 22 & 1) == 0 || (d >> 24 & 1) == 0) return false;
  if (!__get_cpuid_count(7, 1, &a, &b, &c, &d) || (a >> 5 & 1) == 0) return false;  // AVX512_BF16
  constexpr long kRequestPermission = 0x1023, kTileData = 18;
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}
#endif

inline CpuLevel supported_cpu_level() {
#if defined(__x86_64__)
  static const CpuLevel level = [] {
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq"))
      return may_use_amx() ? CpuLevel::amx : CpuLevel::avx512;
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return CpuLevel::avx2;
    return CpuLevel::portable;
  }();
  return level;
#else
  return CpuLevel::portable;
#endif
}

// Which of PyTorch's matrix libraries is the faster one depends on it.
inline bool made_by_intel() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  return __builtin_cpu_is("intel");
#else
  return false;
#endif
}

inline CpuLevel cpu_level() {
  const CpuLevel supported = supported_cpu_level();
  const char* wish = std::getenv("POINTPEFT_CPU_LEVEL");
  if (wish == nullptr || *wish == '\0') return supported;
  const std::string_view name(wish);
  CpuLevel asked = CpuLevel::portable;
  if (name == "amx")
    asked = CpuLevel::amx;
  else if (name == "avx512")
    asked = CpuLevel::avx512;
  else if (name == "avx2")
    asked = CpuLevel::avx2;
  else
    require(name == "portable", "POINTPEFT_CPU_LEVEL must be portable, avx2, avx512 or amx, got ", wish);
  return std::min(asked, supported);
}

inline const char* cpu_level_name(CpuLevel level) {
  constexpr const char* kNames[] = {"portable", "avx2", "avx512", "amx"};
  return kNames[static_cast<int>(level)];
}

// Operations that others are built of: defined once in each library, by the .cpp and by the .cu of their name.
Tensor furthest_point_sample(const Tensor& xyz, int64_t num_samples, const std::optional<Tensor>& lengths,
                             const std::optional<Tensor>& starts, int64_t start, double min_sq_norm);

// knn.{cpp,cu}: the k nearest support points of each query, into tensors made by the caller: squared distances
// (B, M, k) where wanted, indices (B, M, k), and where wanted support[idx] - query (B, M, k, C) in the dtype of
// support, for few channels only.
void nearest(const Tensor& query, const Tensor& support, int64_t k, const std::optional<Tensor>& lengths,
             Tensor* sq_distance, Tensor& idx, Tensor* patches);

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
