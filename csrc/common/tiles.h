// What kernels for AMX share: its tiles of 16 rows of 64 bytes, and the transposition that its right factors ask for.
#pragma once

#include "levels.h"

#if defined(POINTPEFT_HAS_AMX)
#if !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // of the compiler's own header, GCC 12
#endif
#include <immintrin.h>

namespace pointpeft {
namespace {

constexpr int64_t kTile = 16;  // rows of a tile; its columns are 16 float or 32 bfloat16

struct alignas(64) TileConfig {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t bytes[16] = {};
  uint8_t rows[16] = {};
};

// While it lives, this thread's eight tiles are whole ones.
struct Tiles {
  POINTPEFT_AMX Tiles() {
    TileConfig config;
    for (int t = 0; t < 8; ++t) config.bytes[t] = 64, config.rows[t] = kTile;
    __asm__ volatile("" ::"r"(&config) : "memory");  // what follows says that it reads the first 8 bytes alone
    _tile_loadconfig(&config);
  }
  POINTPEFT_AMX ~Tiles() { _tile_release(); }
};

// Transposes 16 rows of 16 values of 32 bits: in stage s, rows whose numbers differ in bit s exchange what lies there.
POINTPEFT_AMX inline void transpose(__m512i* rows) {
  const __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  for (int s = 1; s < 16; s *= 2) {
    const __m512i bit = _mm512_set1_epi32(s), second = _mm512_set1_epi32(16);
    const __mmask16 odd = _mm512_test_epi32_mask(lane, bit);
    const __m512i upper = _mm512_mask_add_epi32(lane, odd, _mm512_sub_epi32(lane, bit), second);
    const __m512i lower = _mm512_mask_add_epi32(_mm512_add_epi32(lane, bit), odd, lane, second);
    for (int r = 0; r < 16; ++r) {
      if (r & s) continue;
      const __m512i a = rows[r], b = rows[r + s];
      rows[r] = _mm512_permutex2var_epi32(a, upper, b);
      rows[r + s] = _mm512_permutex2var_epi32(a, lower, b);
    }
  }
}

// The first lanes: those before `n` of the 16 from `at` on.
POINTPEFT_AMX inline __mmask16 lanes_before(int64_t n, int64_t at) {
  return n - at >= 16 ? 0xFFFF : n <= at ? 0 : static_cast<__mmask16>(_bzhi_u32(0xFFFF, n - at));
}

}  // namespace
}  // namespace pointpeft
#endif
