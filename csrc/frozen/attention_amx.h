// Attention in bfloat16 by AMX: one head of one cloud at a time, all of which stays in the cache. Queries, keys and
// values are packed into the tiles' layout once, scaled and shifted on the way; then 32 queries at a time are
// multiplied with all keys, their scores become shares by a softmax in float32, and the shares are multiplied with all
// values. The division by the sum of the shares comes last, on the result, which has fewer values than the shares.
//
// A tile has 16 rows of 64 bytes, and a product is two by two tiles. Queries, keys, values and shares are rounded to
// bfloat16; scores and sums are float32.
#pragma once

#include "attention_products.h"
#include "common/tiles.h"

#if defined(POINTPEFT_HAS_AMX)

namespace pointpeft::attention {
namespace {

// out [32, 32] = left [32, depth] right: rows of `left` of bfloat16, and of `right` pairs of them, one below the other
// of which stand side by side. Strides in bytes; depth in steps of 32.
POINTPEFT_AMX inline void product_of_tiles(const BFloat16* left, int64_t left_stride, const BFloat16* right,
                                           int64_t right_stride, int64_t steps, float* out, int64_t out_stride) {
  const char *a = reinterpret_cast<const char*>(left), *b = reinterpret_cast<const char*>(right);
  char* c = reinterpret_cast<char*>(out);
  __asm__ volatile("" ::: "memory");  // the loads of tiles do not say that they read memory
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  for (int64_t i = 0; i < steps; ++i) {
    _tile_loadd(4, a + i * 64, left_stride);
    _tile_loadd(5, a + kTile * left_stride + i * 64, left_stride);
    _tile_loadd(6, b + i * kTile * right_stride, right_stride);
    _tile_loadd(7, b + i * kTile * right_stride + 64, right_stride);
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
  _tile_stored(0, c, out_stride);
  _tile_stored(1, c + 64, out_stride);
  _tile_stored(2, c + kTile * out_stride, out_stride);
  _tile_stored(3, c + kTile * out_stride + 64, out_stride);
  __asm__ volatile("" ::: "memory");
}

// 16 channels of a row from `at` on, scaled and shifted; zero behind the last. Rounded to bfloat16.
template <bool kAdapted>
POINTPEFT_AMX inline __m256i sixteen(const BFloat16* row, const float* gamma, const float* beta, float scale,
                                     int64_t at, int64_t width) {
  const __mmask16 there = lanes_before(width, at);
  const __m256i raw = _mm256_maskz_loadu_epi16(there, row + at);
  __m512 x = _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(raw), 16));
  if (kAdapted)
    x = _mm512_fmadd_ps(x, _mm512_maskz_loadu_ps(there, gamma + at), _mm512_maskz_loadu_ps(there, beta + at));
  return reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(_mm512_mul_ps(x, _mm512_set1_ps(scale))));
}

// What a head works in: `padded` tokens and `channels` are multiples of 32, zero where there are none.
struct TileScratch {
  int64_t tokens, width, padded, channels;
  Aligned<BFloat16> short_values;
  Aligned<float> long_values;
  BFloat16 *q, *keys, *v, *shares;
  float *scores, *mixed;
  TileScratch(int64_t tokens, int64_t width)
      : tokens(tokens), width(width), padded((tokens + 31) / 32 * 32), channels((width + 31) / 32 * 32) {
    short_values = aligned_array<BFloat16>(3 * padded * channels + 32 * padded);
    long_values = aligned_array<float>(32 * (padded + channels));
    q = short_values.get(), keys = q + padded * channels, v = keys + padded * channels, shares = v + padded * channels;
    scores = long_values.get(), mixed = scores + 32 * padded;
    std::memset(static_cast<void*>(q), 0, sizeof(BFloat16) * (3 * padded * channels + 32 * padded));
  }
};

// Queries row by row; keys as [channels / 2, padded, 2], values as [padded / 2, channels, 2]: what a product's right
// side has to be.
template <bool kAdapted>
POINTPEFT_AMX inline void pack_tiles(const Head<BFloat16, float>& head, float scale, TileScratch& s) {
  const BFloat16* data = head.data;
  const float *gamma = head.gamma, *beta = head.beta;
  const int64_t stride = head.stride, third = head.third, step = kAdapted ? third : 0;
  for (int64_t n = 0; n < s.padded; n += kTile) {
    for (int64_t r = n; r < n + kTile && r + kAhead < s.tokens; ++r)
      prefetch(data + r * stride, stride, third, 3, s.width);
    const int64_t rows = std::min(kTile, s.tokens - n);
    for (int64_t r = 0; r < rows; ++r)
      for (int64_t at = 0; at < s.width; at += 16)
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(s.q + (n + r) * s.channels + at),
                            sixteen<kAdapted>(data + (n + r) * stride, gamma, beta, scale, at, s.width));
    for (int64_t at = 0; at < s.width; at += 32) {
      __m512i block[16];
      for (int64_t r = 0; r < kTile; ++r) {
        const BFloat16* row = data + (n + r) * stride + third;
        block[r] = _mm512_setzero_si512();
        if (r >= rows) continue;
        block[r] = _mm512_castsi256_si512(sixteen<kAdapted>(row, gamma + step, beta + step, 1.0f, at, s.width));
        if (at + 16 < s.width)
          block[r] = _mm512_inserti64x4(block[r],
                                        sixteen<kAdapted>(row, gamma + step, beta + step, 1.0f, at + 16, s.width), 1);
        else
          block[r] = _mm512_zextsi256_si512(_mm512_castsi512_si256(block[r]));
      }
      pointpeft::transpose(block);
      for (int64_t i = 0; i < 16; ++i) _mm512_store_si512(s.keys + ((at / 2 + i) * s.padded + n) * 2, block[i]);
    }
    for (int64_t r = 0; r < rows; r += 2) {
      const BFloat16* row = data + (n + r) * stride + 2 * third;
      for (int64_t at = 0; at < s.width; at += 16) {
        __m512i pair =
            _mm512_cvtepu16_epi32(sixteen<kAdapted>(row, gamma + 2 * step, beta + 2 * step, 1.0f, at, s.width));
        if (r + 1 < rows)
          pair = _mm512_or_si512(
              pair, _mm512_slli_epi32(_mm512_cvtepu16_epi32(sixteen<kAdapted>(row + stride, gamma + 2 * step,
                                                                              beta + 2 * step, 1.0f, at, s.width)),
                                      16));
        _mm512_store_si512(s.v + (((n + r) / 2) * s.channels + at) * 2, pair);
      }
    }
  }
}

// 2^x for x <= 0, to 3e-6 of it, a thousandth of what bfloat16 leaves; at most 2^-126 below. NaN stays.
POINTPEFT_AMX inline __m512 power_of_two(__m512 x) {
  x = _mm512_max_ps(_mm512_set1_ps(-126.0f), x);
  const __m512 n = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC), r = _mm512_sub_ps(x, n);
  __m512 p = _mm512_set1_ps(0.009570102207362652f);
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0.05591786280274391f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0.240247443318367f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0.6931217908859253f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0.9999992847442627f));
  return _mm512_scalef_ps(p, n);
}

// Of `n` scores the shares exp(s - largest), not yet divided by their sum, zero behind them; the largest and the sum.
POINTPEFT_AMX inline void soften_row(const float* __restrict s, int64_t n, int64_t padded, BFloat16* __restrict shares,
                                     float& largest, float& total) {
  const __m512 none = _mm512_set1_ps(-std::numeric_limits<float>::infinity());
  __m512 most = none, also = none;
  for (int64_t i = 0; i < padded; i += 32) {
    most = _mm512_mask_max_ps(most, lanes_before(n, i), _mm512_load_ps(s + i), most);
    also = _mm512_mask_max_ps(also, lanes_before(n, i + 16), _mm512_load_ps(s + i + 16), also);
  }
  largest = _mm512_reduce_max_ps(_mm512_max_ps(most, also));
  const __m512 top = _mm512_set1_ps(largest), log2e = _mm512_set1_ps(1.44269504088896341f);
  __m512 sum = _mm512_setzero_ps();
  for (int64_t i = 0; i < padded; i += 32) {
    __m512 part[2];
    for (int half = 0; half < 2; ++half) {
      const __m512 x = _mm512_mul_ps(_mm512_sub_ps(_mm512_load_ps(s + i + 16 * half), top), log2e);
      part[half] = _mm512_maskz_mov_ps(lanes_before(n, i + 16 * half), power_of_two(x));
    }
    sum = _mm512_add_ps(sum, _mm512_add_ps(part[0], part[1]));
    _mm512_store_si512(shares + i, reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(part[1], part[0])));
  }
  total = _mm512_reduce_add_ps(sum);
}

// As `attend`.
POINTPEFT_AMX inline void attend_by_tiles(const Head<BFloat16, float>& head, TileScratch& s, BFloat16* out,
                                          int64_t out_stride, float* lse) {
  const float scale = 1.0f / std::sqrt(static_cast<float>(s.width));
  if (head.gamma == nullptr)
    pack_tiles<false>(head, scale, s);
  else
    pack_tiles<true>(head, scale, s);
  for (int64_t first = 0; first < s.tokens; first += 32) {
    for (int64_t n = 0; n < s.padded; n += 32)
      product_of_tiles(s.q + first * s.channels, s.channels * 2, s.keys + n * 2, s.padded * 4, s.channels / 32,
                       s.scores + n, s.padded * 4);
    const int64_t rows = std::min<int64_t>(32, s.tokens - first);
    float largest[32], total[32];
    for (int64_t r = 0; r < rows; ++r)
      soften_row(s.scores + r * s.padded, s.tokens, s.padded, s.shares + r * s.padded, largest[r], total[r]);
    for (int64_t r = 0; r < rows; ++r) lse[first + r] = largest[r] + std::log(total[r]);
    for (int64_t i = 0; i < s.channels; i += 32)
      product_of_tiles(s.shares, s.padded * 2, s.v + i * 2, s.channels * 4, s.padded / 32, s.mixed + i, s.channels * 4);
    for (int64_t r = 0; r < rows; ++r) {
      const __m512 factor = _mm512_set1_ps(1.0f / total[r]);
      for (int64_t i = 0; i < s.width; i += 16) {
        _mm256_mask_storeu_epi16(out + (first + r) * out_stride + i, lanes_before(s.width, i),
                                 reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(
                                     _mm512_mul_ps(_mm512_load_ps(s.mixed + r * s.channels + i), factor))));
      }
    }
  }
}

}  // namespace
}  // namespace pointpeft::attention
#endif
