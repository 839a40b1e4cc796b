// What kernels of vectors share: exchanges among the lanes of one, and compression, which moves the lanes of a mask to
// the front.
#pragma once

#include "levels.h"

namespace pointpeft {
namespace {

// out = the lanes `kLane` of a and b, where those of b are counted on from those of a.
template <size_t... kLane, class V>
POINTPEFT_INLINE void shuffle(const V& a, const V& b, V& out) {
#if defined(__clang__) || __GNUC__ >= 12
  out = __builtin_shufflevector(a, b, static_cast<int>(kLane)...);
#else
  using Lane = std::conditional_t<sizeof(a[0]) == 8, int64_t, int32_t>;
  typedef Lane Lanes __attribute__((vector_size(sizeof(V))));
  out = __builtin_shuffle(a, b, Lanes{static_cast<Lane>(kLane)...});
#endif
}

template <size_t kSwap, class V, size_t... kLane>
POINTPEFT_INLINE void swap_lanes(const V& v, V& out, std::index_sequence<kLane...>) {
  shuffle<(kLane ^ kSwap)...>(v, v, out);
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
