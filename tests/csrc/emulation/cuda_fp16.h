// Stands in for CUDA's header of this name, with PyTorch's conversions, which round to nearest even as well.
#pragma once

#include <torch/headeronly/util/Half.h>

struct __half {
  torch::headeronly::Half value;
};
inline float __half2float(__half v) { return static_cast<float>(v.value); }
inline __half __float2half_rn(float v) { return {torch::headeronly::Half(v)}; }
