// Stands in for CUDA's header of this name: what the kernels and their host code use of it, on the emulator.
#pragma once

#include <math.h>

#include <cstring>

#include "emulation.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define threadIdx (emulation::thread_index())
#define blockIdx (emulation::block_index())
#define __trap() emulation::trap({__FILE__, __LINE__})

struct alignas(8) uint2 {
  unsigned x, y;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

extern dim3 blockDim, gridDim;  // of the launch

// ---- the runtime ----

enum cudaError_t {
  cudaSuccess = 0,
  cudaErrorInvalidValue = 1,
  cudaErrorInvalidConfiguration = 9,
  cudaErrorLaunchFailure = 719
};
enum cudaFuncAttribute { cudaFuncAttributeNonPortableClusterSizeAllowed = 13 };
enum cudaDeviceAttr { cudaDevAttrMultiProcessorCount = 16, cudaDevAttrComputeCapabilityMajor = 75 };
enum cudaLaunchAttributeID { cudaLaunchAttributeClusterDimension = 4 };

struct cudaLaunchAttribute {
  cudaLaunchAttributeID id;
  struct {
    emulation::Index clusterDim;
  } val;
};
struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes;
  cudaStream_t stream;
  cudaLaunchAttribute* attrs;
  unsigned numAttrs;
};

cudaError_t cudaGetLastError();
const char* cudaGetErrorString(cudaError_t error);
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device);

namespace emulation {
cudaError_t allow_large_clusters(const void* function, int value);
cudaError_t count_clusters(int* clusters, const void* function, const cudaLaunchConfig_t& config);
Launch configuration_of(const cudaLaunchConfig_t& config, const void* function);
}  // namespace emulation

template <class... Parameters>
cudaError_t cudaFuncSetAttribute(void (*kernel)(Parameters...), cudaFuncAttribute, int value) {
  return emulation::allow_large_clusters(reinterpret_cast<const void*>(kernel), value);
}

template <class... Parameters>
cudaError_t cudaOccupancyMaxActiveClusters(int* clusters, void (*kernel)(Parameters...),
                                           const cudaLaunchConfig_t* config) {
  return emulation::count_clusters(clusters, reinterpret_cast<const void*>(kernel), *config);
}

template <class... Parameters, class... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               const Arguments&... arguments) {
  const auto function = reinterpret_cast<const void*>(kernel);
  emulation::launch<void (*)(Parameters...), std::decay_t<Parameters>...>(
      emulation::configuration_of(*config, function), kernel, arguments...);
  return cudaSuccess;  // cudaGetLastError says what went wrong
}

// ---- barriers and warps ----

#define EMULATION_SITE emulation::Site site = emulation::Site::here(__builtin_FILE(), __builtin_LINE())

inline void __syncthreads(EMULATION_SITE) { emulation::block_barrier(site); }
inline void __syncwarp(unsigned mask = 0xffffffffu, EMULATION_SITE) {
  emulation::warp_collective(emulation::Collective::sync, mask, 0, 0, site);
}

namespace emulation {

template <class To, class From>
To bits_as(From value) {
  static_assert(sizeof(To) == sizeof(From) && std::is_trivially_copyable_v<From>);
  To result;
  __builtin_memcpy(&result, &value, sizeof(To));
  return result;
}

// `value` of lane `source`.
template <class T>
T shuffle(unsigned mask, T value, int source, Site site) {
  static_assert(sizeof(T) == 4 || sizeof(T) == 8);
  using Bits = std::conditional_t<sizeof(T) == 8, uint64_t, uint32_t>;
  const uint64_t all = warp_collective(Collective::shuffle, mask, bits_as<Bits>(value), source, site);
  return bits_as<T>(static_cast<Bits>(all));
}

inline int lane() { return static_cast<int>(thread_index().x % 32); }

}  // namespace emulation

template <class T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32, EMULATION_SITE) {
  const int first = emulation::lane() / width * width;
  return emulation::shuffle(mask, value, first + (source & (width - 1)), site);
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int lanes, int width = 32, EMULATION_SITE) {
  const int lane = emulation::lane(), source = lane ^ lanes;
  return emulation::shuffle(mask, value, source / width <= lane / width ? source : lane, site);
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned by, int width = 32, EMULATION_SITE) {
  const int lane = emulation::lane(), source = lane - static_cast<int>(by);
  return emulation::shuffle(mask, value, source >= lane / width * width ? source : lane, site);
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned by, int width = 32, EMULATION_SITE) {
  const int lane = emulation::lane(), source = lane + static_cast<int>(by);
  return emulation::shuffle(mask, value, source < (lane / width + 1) * width ? source : lane, site);
}

#define EMULATION_VOTE(name, operation, Result)                                                                    \
  inline Result name(unsigned mask, bool vote, EMULATION_SITE) {                                                   \
    return static_cast<Result>(emulation::warp_collective(emulation::Collective::operation, mask, vote, 0, site)); \
  }
EMULATION_VOTE(__ballot_sync, ballot, unsigned)
EMULATION_VOTE(__all_sync, all, int)
EMULATION_VOTE(__any_sync, any, int)

#define EMULATION_REDUCTION(name, operation, T)                                                               \
  inline T name(unsigned mask, T value, EMULATION_SITE) {                                                     \
    const auto wide = static_cast<uint64_t>(static_cast<int64_t>(value));                                     \
    return static_cast<T>(emulation::warp_collective(emulation::Collective::operation, mask, wide, 0, site)); \
  }
EMULATION_REDUCTION(__reduce_add_sync, add, int)
EMULATION_REDUCTION(__reduce_add_sync, add, unsigned)
EMULATION_REDUCTION(__reduce_min_sync, min, int)
EMULATION_REDUCTION(__reduce_min_sync, min, unsigned)
EMULATION_REDUCTION(__reduce_max_sync, max, int)
EMULATION_REDUCTION(__reduce_max_sync, max, unsigned)
EMULATION_REDUCTION(__reduce_and_sync, bit_and, unsigned)
EMULATION_REDUCTION(__reduce_or_sync, bit_or, unsigned)
EMULATION_REDUCTION(__reduce_xor_sync, bit_xor, unsigned)

// ---- atomics and numbers ----

namespace emulation {

template <class T>
struct Identity {
  using type = T;
};
template <class T>
using Given = typename Identity<T>::type;  // takes no part in deduction

// One fiber runs at a time, so that a plain change is atomic. Not hooked: it is no race with another atomic.
template <class T, class Change>
__attribute__((noinline, no_sanitize("thread"))) T atomic(T* address, Change change) {
  atomic_access(address, sizeof(T), __builtin_return_address(0));
  const T old = *address;
  *address = change(old);
  return old;
}

}  // namespace emulation

template <class T>
T atomicAdd(T* address, emulation::Given<T> value) {
  return emulation::atomic(address, [=](T old) { return static_cast<T>(old + value); });
}
template <class T>
T atomicMax(T* address, emulation::Given<T> value) {
  return emulation::atomic(address, [=](T old) { return old < value ? value : old; });
}
template <class T>
T atomicMin(T* address, emulation::Given<T> value) {
  return emulation::atomic(address, [=](T old) { return value < old ? value : old; });
}
template <class T>
T atomicExch(T* address, emulation::Given<T> value) {
  return emulation::atomic(address, [=](T) { return value; });
}
template <class T>
T atomicCAS(T* address, emulation::Given<T> expected, emulation::Given<T> value) {
  return emulation::atomic(address, [=](T old) { return old == expected ? value : old; });
}

template <class T>
T __ldg(const T* address) {
  return *address;
}
template <class A, class B>
constexpr std::common_type_t<A, B> max(A a, B b) {
  return a < b ? b : a;
}
template <class A, class B>
constexpr std::common_type_t<A, B> min(A a, B b) {
  return b < a ? b : a;
}
inline int __popc(unsigned v) { return __builtin_popcount(v); }
inline int __popcll(unsigned long long v) { return __builtin_popcountll(v); }
inline int __ffs(int v) { return __builtin_ffs(v); }
inline int __ffsll(long long v) { return __builtin_ffsll(v); }
inline int __clz(int v) { return v == 0 ? 32 : __builtin_clz(static_cast<unsigned>(v)); }
inline int __float_as_int(float v) { return emulation::bits_as<int>(v); }
inline unsigned __float_as_uint(float v) { return emulation::bits_as<unsigned>(v); }
inline float __int_as_float(int v) { return emulation::bits_as<float>(v); }
inline float __uint_as_float(unsigned v) { return emulation::bits_as<float>(v); }
inline long long __double_as_longlong(double v) { return emulation::bits_as<long long>(v); }
inline double __longlong_as_double(long long v) { return emulation::bits_as<double>(v); }
