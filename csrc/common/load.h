// The loaders of strided points: as rows of one coordinate each, which kernels read in vectors, or one by one with
// their indices, to be sorted into a tree. Each says whether all values are finite.
#pragma once

#include "levels.h"

namespace pointpeft {
namespace {

// Where the points of one cloud lie, in a type that the reader knows.
struct StridedPoints {
  const void* data;
  int64_t stride_n, stride_c;
};

// Copies points into rows x, y, z. The check is a maximum over the bits without sign, which vectorises; strides known
// at compile time make the whole loop vectorise.
template <class T, class A>
POINTPEFT_INLINE bool load_strided(const T* __restrict from, int64_t stride_n, int64_t stride_c, int64_t n,
                                   A* __restrict x, A* __restrict y, A* __restrict z) {
  using Bits = std::conditional_t<sizeof(A) == 8, int64_t, int32_t>;
  constexpr A kInfinity = std::numeric_limits<A>::infinity();
  constexpr Bits kNoSign = std::numeric_limits<Bits>::max();
  Bits most = 0, infinity;
  std::memcpy(&infinity, &kInfinity, sizeof(A));
  for (int64_t i = 0; i < n; ++i) {
    const A p[3] = {static_cast<A>(from[i * stride_n]), static_cast<A>(from[i * stride_n + stride_c]),
                    static_cast<A>(from[i * stride_n + 2 * stride_c])};
    Bits bits[3];
    std::memcpy(bits, p, sizeof(p));
    x[i] = p[0];
    y[i] = p[1];
    z[i] = p[2];
    for (int c = 0; c < 3; ++c) most = (bits[c] & kNoSign) > most ? (bits[c] & kNoSign) : most;
  }
  return most < infinity;
}

template <class T, class A>
POINTPEFT_INLINE bool load_rows(const StridedPoints& points, int64_t n, A* x, A* y, A* z) {
  const T* from = static_cast<const T*>(points.data);
  const int64_t stride_n = points.stride_n, stride_c = points.stride_c;
  if (stride_c == 1 && stride_n == 3) return load_strided(from, 3, 1, n, x, y, z);
  if (stride_n == 1) return load_strided(from, 1, stride_c, n, x, y, z);
  return load_strided(from, stride_n, stride_c, n, x, y, z);
}

// Copies points of any number of channels into rows `padded` apart, which end in NaN: a NaN distance is below no bound.
template <class T, class A>
bool load_padded_rows(const StridedPoints& points, int64_t channels, int64_t n, int64_t padded, A* rows) {
  if (channels == 3) {
    A *x = rows, *y = rows + padded, *z = rows + 2 * padded;
    for (A* row : {x, y, z}) std::fill(row + n, row + padded, std::numeric_limits<A>::quiet_NaN());
    return load_rows<T>(points, n, x, y, z);
  }
  const T* from = static_cast<const T*>(points.data);
  bool finite = true;
  for (int64_t c = 0; c < channels; ++c) {
    A* row = rows + c * padded;
    for (int64_t i = 0; i < n; ++i) row[i] = static_cast<A>(from[i * points.stride_n + c * points.stride_c]);
    for (int64_t i = 0; i < n; ++i) finite &= std::abs(row[i]) <= std::numeric_limits<A>::max();
    std::fill(row + n, row + padded, std::numeric_limits<A>::quiet_NaN());
  }
  return finite;
}

// An integer as wide as A.
template <class A>
using BitsOf = std::conditional_t<sizeof(A) == 8, int64_t, int32_t>;

// A point and its index in the cloud.
template <class A>
struct Point {
  A c[3];
  BitsOf<A> id;
};

// Copies points of at most 3 channels; others get zeros for those they lack, which change no distance.
template <class T, class A>
bool load_points(const StridedPoints& from, int64_t channels, int64_t n, Point<A>* points) {
  const T* data = static_cast<const T*>(from.data);
  std::atomic<bool> finite{true};
  torch::stable::parallel_for(0, n, 4096, [&](int64_t begin, int64_t end) {
    const auto copy = [&](auto given) {  // the usual number of channels as a constant
      bool good = true;
      for (int64_t i = begin; i < end; ++i) {
        for (int64_t c = 0; c < 3; ++c) {
          points[i].c[c] = c < given ? static_cast<A>(data[i * from.stride_n + c * from.stride_c]) : A(0);
          good &= std::abs(points[i].c[c]) <= std::numeric_limits<A>::max();
        }
        points[i].id = static_cast<BitsOf<A>>(i);
      }
      return good;
    };
    if (!(channels == 3 ? copy(std::integral_constant<int64_t, 3>{}) : copy(channels))) finite = false;
  });
  return finite;
}

}  // namespace
}  // namespace pointpeft
