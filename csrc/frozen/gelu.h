// GELU and its derivative, and the bits that decide dropout: plain scalar functions that vectorise in a loop.
#pragma once

#include "common/levels.h"

namespace pointpeft {

// a b + c, rounded once: one instruction at the vector levels, a call of the C library at the portable one of x86, and
// the same bits at all of them. A pass of GELU takes 0.6 of the time with it (AVX-512, 2064 x 1536 values).
POINTPEFT_INLINE float fused(float a, float b, float c) { return __builtin_fmaf(a, b, c); }

// exp(x) for x <= 0, within two roundings; at most 2^-126 below -87. Cephes' polynomial after a split by ln 2.
POINTPEFT_INLINE float exp_of_negative(float x) {
  constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer, left in the low bits
  x = x < -87.0f ? -87.0f : x;           // NaN stays
  const float shifted = fused(x, 1.44269504088896341f, kRound), n = shifted - kRound;
  const float r = fused(n, 2.12194440e-4f, fused(n, -0.693359375f, x));
  float p = 1.9875691500e-4f;
  p = fused(p, r, 1.3981999507e-3f);
  p = fused(p, r, 8.3334519073e-3f);
  p = fused(p, r, 4.1665795894e-2f);
  p = fused(p, r, 1.6666665459e-1f);
  p = fused(p, r, 5.0000001201e-1f);
  p = fused(p, r * r, r) + 1.0f;
  uint32_t bits;  // any at all of NaN
  std::memcpy(&bits, &shifted, sizeof(bits));
  bits = (bits - 0x4B400000u + 127u) << 23;
  float power;
  std::memcpy(&power, &bits, sizeof(power));
  return p * power;
}

// Φ(y), the normal distribution function, and φ(y), its density. Below zero Φ keeps its relative accuracy: it is
// exp(-y²/2) times a polynomial in 1 / (1 + 0.35 |y|), fitted for 0 <= |y| <= 13.5 to 3.2e-8 of the value.
POINTPEFT_INLINE void normal(float y, float& below, float& density) {
  const float a = y < 0 ? -y : y;
  const float power = exp_of_negative(-0.5f * y * y);
  const float t = 1.0f / fused(0.35f, a, 1.0f);
  float q = -0.02912623010203251f;
  q = fused(q, t, 0.14387396698073365f);
  q = fused(q, t, -0.2555080356748279f);
  q = fused(q, t, 0.15893311216924152f);
  q = fused(q, t, -0.022939652790489186f);
  q = fused(q, t, 0.10543394368153946f);
  q = fused(q, t, 0.11985219906376597f);
  q = fused(q, t, 0.13985911255370817f);
  q = fused(q, t, 0.1396215682362737f);
  const float tail = q * t * power;
  below = y < 0 ? tail : 1.0f - tail;
  density = power * 0.3989422804014327f;
}

POINTPEFT_INLINE void normal(double y, double& below, double& density) {
  below = 0.5 * std::erfc(-y * 0.70710678118654752440);
  density = std::exp(-0.5 * y * y) * 0.39894228040143267794;
}

template <class A>
POINTPEFT_INLINE A gelu(A y) {
  A below, density;
  normal(y, below, density);
  return y * below;
}

// dGELU(y) / dy
template <class A>
POINTPEFT_INLINE A gelu_slope(A y) {
  A below, density;
  normal(y, below, density);
  return below + y * density;
}

// Whether dropout keeps element `index`: MurmurHash3's finaliser, twice, as `mask` in pointpeft/ops/core/dropout.py.
POINTPEFT_INLINE uint32_t mixed(uint32_t h) {
  h = (h ^ (h >> 16)) * 0x85EBCA6Bu;
  h = (h ^ (h >> 13)) * 0xC2B2AE35u;
  return h ^ (h >> 16);
}

POINTPEFT_INLINE bool kept(uint32_t low, uint32_t high, uint32_t index, float probability) {
  const uint32_t h = mixed(mixed(index * 0x9E3779B1u + low) + high);
  return static_cast<float>(static_cast<int32_t>(h >> 8)) * 0x1p-24f >= probability;
}

}  // namespace pointpeft
