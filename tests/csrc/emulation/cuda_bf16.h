// Stands in for CUDA's header of this name, with PyTorch's conversions, which round to nearest even as well.
#pragma once

#include <torch/headeronly/util/BFloat16.h>

struct __nv_bfloat16 {
  torch::headeronly::BFloat16 value;
};
inline float __bfloat162float(__nv_bfloat16 v) { return static_cast<float>(v.value); }
inline __nv_bfloat16 __float2bfloat16_rn(float v) { return {torch::headeronly::BFloat16(v)}; }
