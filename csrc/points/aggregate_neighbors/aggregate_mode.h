// How aggregate_neighbors pools, as its operations are told: on the CPU and on CUDA.
#pragma once

#include <cstdint>
#include <type_traits>

namespace pointpeft::aggregate_neighbors {

enum Mode : int64_t { kMax = 0, kMean = 1, kSum = 2, kWeighted = 3 };

// Calls body with a mode that require_pooling let pass, as a constant.
template <class Body>
void dispatch_mode(int64_t mode, Body&& body) {
  if (mode == kMax) return body(std::integral_constant<int64_t, kMax>{});
  if (mode == kMean) return body(std::integral_constant<int64_t, kMean>{});
  if (mode == kSum) return body(std::integral_constant<int64_t, kSum>{});
  body(std::integral_constant<int64_t, kWeighted>{});
}

}  // namespace pointpeft::aggregate_neighbors
