// What kernels of vectors share: what joins the lanes of one, and for functions written in intrinsics the attributes
// that raise their vector level, and compression.
#pragma once

#include "pointpeft.h"

namespace pointpeft {
namespace {

template <int kSwap, class V, size_t... kLane>
POINTPEFT_INLINE void swap_lanes(const V& v, V& out, std::index_sequence<kLane...>) {
  out = __builtin_shufflevector(v, v, (static_cast<int>(kLane) ^ kSwap)...);
}

// The maximum (or minimum) over all lanes, in all lanes.
template <int kSwap, bool kMaximum, class V>
POINTPEFT_INLINE void over_lanes(V& v) {
  if constexpr (kSwap > 0) {
    V other;
    swap_lanes<kSwap>(v, other, std::make_index_sequence<sizeof(v) / sizeof(v[0])>{});
    v = (kMaximum ? other > v : other < v) ? other : v;
    over_lanes<kSwap / 2, kMaximum>(v);
  }
}

}  // namespace
}  // namespace pointpeft

#if defined(__x86_64__)
#include <immintrin.h>
#define POINTPEFT_AVX512 \
  __attribute__((target("avx512f,avx512vl,avx512bw,avx512dq,bmi2,popcnt,prefer-vector-width=512")))
#define POINTPEFT_AVX2 __attribute__((target("avx2,bmi,popcnt")))

namespace pointpeft {
namespace {

// For every mask of 8 lanes, those lanes in order: AVX2 has no instruction that compresses.
struct Packing {
  alignas(64) unsigned char lanes[256][8] = {};
  constexpr Packing() {
    for (int mask = 0; mask < 256; ++mask)
      for (int lane = 0, place = 0; lane < 8; ++lane)
        if (mask >> lane & 1) lanes[mask][place++] = static_cast<unsigned char>(lane);
  }
};
constexpr Packing kPacking;

// The permutation that moves the lanes of a mask to the front.
POINTPEFT_AVX2 inline __m256i packing(unsigned mask) {
  return _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(kPacking.lanes[mask])));
}

}  // namespace
}  // namespace pointpeft
#endif
