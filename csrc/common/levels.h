// The vector levels of the CPU kernels, and the one place that chooses among them. A kernel is a function template that
// is inlined everywhere and names no instructions: the compiler vectorises it in each of three wrappers, whose target
// attribute it takes over. Which wrapper runs is asked once a call, so one library serves every processor, and loops
// and intrinsics of a level share one spelling of its target.
//
//   template <class A> POINTPEFT_INLINE void add(const A* from, int64_t n, A*
//   to) {...} dispatch_level([&](auto level) { decltype(level)::template
//   compiled<add<A>>(from, n, to); });
#pragma once

#include "pointpeft.h"

#if defined(__x86_64__) && defined(__linux__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

// Inlined into callers that raise the vector level by a target attribute, and compiled for that level there.
#define POINTPEFT_INLINE inline __attribute__((always_inline))

// Ends the string of a target attribute with AVX-512: vectors of 512 bits instead of 256 where GCC vectorizes a loop.
// clang ignores the whole attribute because of it, and takes -mprefer-vector-width=512 from setup.py instead.
#if defined(__clang__)
#define POINTPEFT_WHOLE_VECTORS ""
#else
#define POINTPEFT_WHOLE_VECTORS ",prefer-vector-width=512"
#endif

// The targets: of the wrappers below, and of functions that are written in intrinsics.
#if defined(__x86_64__)
#define POINTPEFT_AVX2 __attribute__((target("avx2,fma,bmi,bmi2,popcnt")))
#define POINTPEFT_AVX512_FEATURES                    \
  "avx512f,avx512vl,avx512bw,avx512dq,fma,bmi,bmi2," \
  "popcnt" POINTPEFT_WHOLE_VECTORS
#define POINTPEFT_AVX512 __attribute__((target(POINTPEFT_AVX512_FEATURES)))
#define POINTPEFT_AMX __attribute__((target("amx-tile,amx-bf16,avx512bf16," POINTPEFT_AVX512_FEATURES)))
#endif

// Whether the compiler has the instructions of AMX.
#if defined(__x86_64__) && defined(__linux__) && !defined(POINTPEFT_NO_AMX)
#if defined(__clang__) ? __clang_major__ >= 14 : __GNUC__ >= 11
#define POINTPEFT_HAS_AMX 1
#endif
#endif

namespace pointpeft {

// ---- what the processor has ----

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
    if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma") || !__builtin_cpu_supports("bmi") ||
        !__builtin_cpu_supports("bmi2") || !__builtin_cpu_supports("popcnt"))
      return CpuLevel::portable;
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq"))
      return may_use_amx() ? CpuLevel::amx : CpuLevel::avx512;
    return CpuLevel::avx2;
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

// Which of PyTorch's matrix libraries is the faster one depends on it.
inline bool made_by_intel() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  return __builtin_cpu_is("intel");
#else
  return false;
#endif
}

// ---- kernels at a level ----

namespace {

// Calls kKernel, a function that is inlined, with the target of a level.
template <auto kKernel>
struct PortableCall;
template <class Result, class... Parameters, Result (*kKernel)(Parameters...)>
struct PortableCall<kKernel> {
  static Result run(Parameters... parameters) { return kKernel(parameters...); }
};

#if defined(__x86_64__)
template <auto kKernel>
struct Avx2Call;
template <class Result, class... Parameters, Result (*kKernel)(Parameters...)>
struct Avx2Call<kKernel> {
  POINTPEFT_AVX2 static Result run(Parameters... parameters) { return kKernel(parameters...); }
};

template <auto kKernel>
struct Avx512Call;
template <class Result, class... Parameters, Result (*kKernel)(Parameters...)>
struct Avx512Call<kKernel> {
  POINTPEFT_AVX512 static Result run(Parameters... parameters) { return kKernel(parameters...); }
};
#endif

// A level: bytes of its vectors, and `compiled<kKernel>`, a pointer to the kernel as compiled for it.
struct Portable {
  static constexpr int kBytes = 16;
  template <auto kKernel>
  static constexpr auto compiled = &PortableCall<kKernel>::run;
};

#if defined(__x86_64__)
struct Avx2 {
  static constexpr int kBytes = 32;
  template <auto kKernel>
  static constexpr auto compiled = &Avx2Call<kKernel>::run;
};

struct Avx512 {
  static constexpr int kBytes = 64;
  template <auto kKernel>
  static constexpr auto compiled = &Avx512Call<kKernel>::run;
};
#endif

// Values of type A in a vector of a level.
template <class Level, class A>
constexpr int kLanesOf = Level::kBytes / static_cast<int>(sizeof(A));

// Gives what body(level) gives, with the level in use now; chosen once a call.
template <class Body>
auto dispatch_level(Body&& body) {
#if defined(__x86_64__)
  const CpuLevel level = cpu_level();
  if (level >= CpuLevel::avx512) return body(Avx512{});
  if (level >= CpuLevel::avx2) return body(Avx2{});
#endif
  return body(Portable{});
}

// As `dispatch_level` for kernels whose vector code is of float32 alone: float64, which nobody trains in, is portable.
template <class A, class Body>
auto dispatch_float_level(Body&& body) {
  if constexpr (std::is_same_v<A, float>)
    return dispatch_level(body);
  else
    return body(Portable{});
}

}  // namespace
}  // namespace pointpeft
