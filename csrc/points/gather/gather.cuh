// The index arithmetic of gathering rows and of its inverse. Nothing here but integers, so that a host can run it too
// (tests/csrc).
#pragma once

#include <cstdint>

namespace pointpeft::gather {

// Which of the words of features (B, N, words) is word e of features[idx], idx having `rows` entries a cloud; -1 where
// the index is out of range.
__device__ __forceinline__ int64_t source_of(int64_t e, const int64_t* idx, int64_t n, int64_t rows, int64_t words) {
  const int64_t r = e / words, i = idx[r];
  return i >= 0 && i < n ? (r / rows * n + i) * words + e % words : -1;
}

// Where in `count` ascending keys the first one is that is not below `target`, by bisection: in idx sorted within a
// cloud, the first of the places that name a target.
__device__ __forceinline__ int64_t first_of(const int64_t* keys, int64_t count, int64_t target) {
  int64_t low = 0, high = count;
  while (low < high) {
    const int64_t middle = (low + high) / 2;
    if (keys[middle] < target)
      low = middle + 1;
    else
      high = middle;
  }
  return low;
}

}  // namespace pointpeft::gather
