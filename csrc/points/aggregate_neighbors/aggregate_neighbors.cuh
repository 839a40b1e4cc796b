// What a thread of aggregate_neighbors does, forward and backward. Nothing here but loads, arithmetic and a bisection,
// so that a host can run it too (tests/csrc).
#pragma once

#include "aggregate_mode.h"
#include "points/gather/gather.cuh"

namespace pointpeft::aggregate_neighbors {

template <class T, int width>
struct alignas(sizeof(T) * width) Pack {
  T value[width];
};

// Element e of the output: the pool of `width` channels of one group.
template <int64_t mode, int width, class T, class A, class Arg>
__device__ __forceinline__ void pool_channels(int64_t e, const T* features, const int64_t* idx, const A* weights,
                                              int64_t n, int64_t groups, int64_t s, int64_t channels, T* out,
                                              Arg* argmax) {
  using Packed = Pack<T, width>;
  const int64_t packs = channels / width, g = e / packs, p = e % packs;
  const Packed* rows = reinterpret_cast<const Packed*>(features + g / groups * n * channels) + p;
  const int64_t* index = idx + g * s;
  A pooled[width];
  int32_t arg[width];
#pragma unroll 4
  for (int64_t j = 0; j < s; ++j) {
    const int64_t i = index[j];
    Packed row;
    if (i >= 0 && i < n)
      row = rows[i * packs];
    else
      for (int w = 0; w < width; ++w) row.value[w] = T(0.0f);
    const A weight = mode == kWeighted ? weights[g * s + j] : A(1);
#pragma unroll
    for (int w = 0; w < width; ++w) {
      const A value = mode == kWeighted ? weight * A(row.value[w]) : A(row.value[w]);
      if (j == 0) {
        pooled[w] = value;
        arg[w] = 0;
      } else if (mode == kMax) {
        if (!(value <= pooled[w]) && pooled[w] == pooled[w]) {  // NaN wins, and of equal values the first
          pooled[w] = value;
          arg[w] = static_cast<int32_t>(j);
        }
      } else {
        pooled[w] += value;
      }
    }
  }
  Packed result;
#pragma unroll
  for (int w = 0; w < width; ++w) result.value[w] = T(mode == kMean ? pooled[w] / A(s) : pooled[w]);
  reinterpret_cast<Packed*>(out)[e] = result;
  if (mode == kMax && argmax != nullptr) {
    Pack<Arg, width> places;
#pragma unroll
    for (int w = 0; w < width; ++w) places.value[w] = static_cast<Arg>(arg[w]);
    reinterpret_cast<Pack<Arg, width>*>(argmax)[e] = places;
  }
}

// Element e of the gradient: what `width` channels of one target sent out, summed in the order of the places that name
// it, of which `sorted` and `row_of` are the inverse index: idx sorted within its cloud, and where each entry stood.
template <int64_t mode, int width, class T, class A, class Arg>
__device__ __forceinline__ void sum_channels(int64_t e, const T* grad, const int64_t* sorted, const int64_t* row_of,
                                             const A* weights, const Arg* argmax, int64_t n, int64_t groups, uint32_t s,
                                             int64_t channels, T* out) {
  using Packed = Pack<T, width>;
  const int64_t packs = channels / width, target = e / packs, p = e % packs, b = target / n, i = target % n;
  const int64_t places = groups * s;
  const int64_t *keys = sorted + b * places, *order = row_of + b * places;
  A sum[width] = {};
  for (int64_t r = gather::first_of(keys, places, i); r < places && keys[r] == i; ++r) {
    const int64_t entry = order[r];
    if (entry < 0 || entry >= places) continue;
    const uint32_t place = static_cast<uint32_t>(entry), g = place / s, j = place % s;  // places < 2^32
    const int64_t from = (b * groups + g) * packs + p;
    const Packed row = reinterpret_cast<const Packed*>(grad)[from];
    if (mode == kMax) {
      const Pack<Arg, width> winners = reinterpret_cast<const Pack<Arg, width>*>(argmax)[from];
#pragma unroll
      for (int w = 0; w < width; ++w)
        if (static_cast<uint32_t>(winners.value[w]) == j) sum[w] += A(row.value[w]);
    } else {
      const A weight = mode == kWeighted ? weights[b * places + place] : A(1);
#pragma unroll
      for (int w = 0; w < width; ++w) sum[w] += weight * (mode == kMean ? A(row.value[w]) / A(s) : A(row.value[w]));
    }
  }
  Packed result;
#pragma unroll
  for (int w = 0; w < width; ++w) result.value[w] = T(sum[w]);
  reinterpret_cast<Packed*>(out)[e] = result;
}

}  // namespace pointpeft::aggregate_neighbors
