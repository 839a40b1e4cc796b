// Checks of the CUDA operations alone: those of values, which wait for the device and are made under POINTPEFT_CHECK=1,
// and those of the inverse index that their backward is given.
#pragma once

#include "checks.h"

namespace pointpeft {

// No NaN and no infinity among the first `lengths` points of each cloud.
inline void require_finite_on_device(const char* name, const Tensor& points, const std::optional<Tensor>& lengths) {
  if (!looks_at_values()) return;
  const Tensor values = on_host(torch::stable::to(points, ScalarType::Double));
  std::optional<Tensor> length;
  if (lengths) length = on_host(*lengths);
  const double* value = values.const_data_ptr<double>();
  const int64_t n = points.size(1), channels = points.size(2);
  for (int64_t b = 0; b < points.size(0); ++b) {
    const int64_t count = (length ? length->const_data_ptr<int64_t>()[b] : n) * channels;
    for (int64_t i = 0; i < count; ++i)
      require(std::isfinite(value[b * n * channels + i]), name, " must be finite, got NaN or infinite values");
  }
}

// Indices between 0 and N - 1.
inline void require_range_on_device(const char* name, const Tensor& idx, int64_t n) {
  if (!looks_at_values()) return;
  const Tensor values = on_host(idx);
  const int64_t* value = values.const_data_ptr<int64_t>();
  for (int64_t i = 0; i < values.numel(); ++i)
    if (value[i] < 0 || value[i] >= n) fail(name, " must be between 0 and N - 1 = ", n - 1, ", got ", value[i]);
}

// A sort of the `entries` indices of each of `batch` clouds, and where each of them stood.
inline void require_order(const Tensor& grad, int64_t batch, int64_t entries, const Tensor& sorted,
                          const Tensor& row_of) {
  for (const auto& [name, tensor] : {std::pair{"sorted", &sorted}, std::pair{"row_of", &row_of}}) {
    require_dtype(name, *tensor, ScalarType::Long);
    require_shape(name, *tensor, {batch, entries});
    require_device(name, *tensor, "grad", grad);
  }
}

}  // namespace pointpeft
