// What attention's forward and backward on the CPU have in common: products of small matrices, and where a head lies in
// rows of queries, keys and values. A product keeps a tile of its result in registers, some rows of a few vectors each:
// a step loads one row of vectors of the right factor and multiplies it with one value of each row of the left one, so
// each load serves all rows. The right factor is transposed beforehand where its rows are not what a step reads.
#pragma once

#include "common/pointpeft.h"

// Vectors are passed between inlined functions alone, so no caller can disagree about how.
#pragma GCC diagnostic ignored "-Wpsabi"
// Products of matrices and exponentials are what attention consists of: in it a product and its sum may round once. GCC
// decides it by the function that others are inlined into, which is a wrapper of levels.h: so this comes before them.
#if defined(__clang__)
#pragma clang fp contract(fast)
#else
#pragma GCC optimize("fp-contract=fast")
#endif

#include "common/rows.h"
#include "common/simd.h"
#include "gelu.h"

namespace pointpeft::attention {
namespace {

template <class A, int W>
using Vector __attribute__((vector_size(W * sizeof(A)))) = A;

// Rows and vectors of a product's tile: their sums, one row of vectors and a value fill the registers of a level.
template <class Level>
struct TileShape {
  static constexpr int kRows = 4, kVectors = 2;
};
#if defined(__x86_64__)
template <>
struct TileShape<Avx2> {
  static constexpr int kRows = 4, kVectors = 3;
};
template <>
struct TileShape<Avx512> {
  static constexpr int kRows = 6, kVectors = 4;
};
#endif

template <class A, int W>
POINTPEFT_INLINE Vector<A, W> load(const A* from) {
  Vector<A, W> v;
  std::memcpy(&v, from, sizeof(v));
  return v;
}

POINTPEFT_INLINE float exponential(float x) { return exp_of_negative(x); }
POINTPEFT_INLINE double exponential(double x) { return std::exp(x); }

// A matrix whose element of row r and column i is at data[r * row + i * column].
template <class A>
struct Matrix {
  const A* data;
  int64_t row, column;
};

// out[r][column] = sum over i of left[r][i] right[i][column], for kRows rows and kColumns vectors of columns.
template <class A, int W, int kRows, int kColumns>
POINTPEFT_INLINE void product_tile(Matrix<A> left, const A* __restrict right, int64_t right_stride, int64_t depth,
                                   A* __restrict out, int64_t out_stride) {
  Vector<A, W> sum[kRows][kColumns] = {};
  for (int64_t i = 0; i < depth; ++i) {
    Vector<A, W> row[kColumns];
#pragma GCC unroll 8
    for (int c = 0; c < kColumns; ++c) row[c] = load<A, W>(right + i * right_stride + c * W);
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      const A value = left.data[r * left.row + i * left.column];
#pragma GCC unroll 8
      for (int c = 0; c < kColumns; ++c) sum[r][c] += value * row[c];
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 8
    for (int c = 0; c < kColumns; ++c) std::memcpy(out + r * out_stride + c * W, &sum[r][c], sizeof(sum[r][c]));
}

// The same for any number of vectors of columns, in tiles of nearly equal widths.
template <class A, int W, int kRows, int kMost>
POINTPEFT_INLINE void product(Matrix<A> left, const A* right, int64_t right_stride, int64_t depth, int64_t vectors,
                              A* out, int64_t out_stride) {
  const int64_t tiles = (vectors + kMost - 1) / kMost;
  for (int64_t t = 0; t < tiles; ++t) {
    const int64_t begin = vectors * t / tiles * W;
    const A* from = right + begin;
    A* to = out + begin;
    switch (vectors * (t + 1) / tiles - vectors * t / tiles) {
      case 1:
        product_tile<A, W, kRows, 1>(left, from, right_stride, depth, to, out_stride);
        break;
      case 2:
        product_tile<A, W, kRows, 2>(left, from, right_stride, depth, to, out_stride);
        break;
      case 3:
        if constexpr (kMost >= 3) product_tile<A, W, kRows, 3>(left, from, right_stride, depth, to, out_stride);
        break;
      default:
        if constexpr (kMost >= 4) product_tile<A, W, kRows, 4>(left, from, right_stride, depth, to, out_stride);
    }
  }
}

// The upper half of `low` and the lower half of `high` change places; of halves of halves, in each, for a kHalf below.
template <int kHalf, class V, size_t... kLane>
POINTPEFT_INLINE void exchange(V& low, V& high, std::index_sequence<kLane...>) {
  constexpr size_t W = sizeof...(kLane);
  const V before = low;
  const V after = high;
  shuffle<(kLane & kHalf ? W + kLane - kHalf : kLane)...>(before, after, low);
  shuffle<(kLane & kHalf ? W + kLane : kLane + kHalf)...>(before, after, high);
}

template <class A, int W, int kHalf = W / 2>
POINTPEFT_INLINE void transpose_tile(Vector<A, W> (&tile)[W]) {
  if constexpr (kHalf > 0) {
#pragma GCC unroll 16
    for (int r = 0; r < W; ++r)
      if ((r & kHalf) == 0) exchange<kHalf>(tile[r], tile[r + kHalf], std::make_index_sequence<W>{});
    transpose_tile<A, W, kHalf / 2>(tile);
  }
}

// to[i * to_stride + n] = from[n * from_stride + i] for n < rows, which W divides, and i < columns; `from` may be read
// up to the next multiple of W.
template <class A, int W>
POINTPEFT_INLINE void transpose(const A* __restrict from, int64_t from_stride, int64_t rows, int64_t columns,
                                A* __restrict to, int64_t to_stride) {
  for (int64_t n = 0; n < rows; n += W)
    for (int64_t i = 0; i < columns; i += W) {
      Vector<A, W> tile[W];
#pragma GCC unroll 16
      for (int r = 0; r < W; ++r) tile[r] = load<A, W>(from + (n + r) * from_stride + i);
      transpose_tile<A, W>(tile);
      A* at = to + i * to_stride + n;
      if (i + W <= columns) {
#pragma GCC unroll 16
        for (int r = 0; r < W; ++r) std::memcpy(at + r * to_stride, &tile[r], sizeof(tile[r]));
      } else {
        for (int r = 0; r < columns - i; ++r) std::memcpy(at + r * to_stride, &tile[r], sizeof(tile[r]));
      }
    }
}

// Where a head lies in rows of queries, keys and values, and what is applied to them.
template <class T, class A>
struct Head {
  const T* data;
  int64_t stride, third;  // between tokens; between queries, keys and values
  const A *gamma, *beta;  // of the queries; null for none
};

// A row of queries, keys or values, scaled and shifted.
template <bool kAdapted, class T, class A>
POINTPEFT_INLINE void pack_row(const T* __restrict from, const A* __restrict gamma, const A* __restrict beta, A scale,
                               int64_t d, A* __restrict to) {
  for (int64_t i = 0; i < d; ++i) {
    const A x = static_cast<A>(from[i]);
    to[i] = (kAdapted ? gamma[i] * x + beta[i] : x) * scale;
  }
}

// What forward and backward ask of their queries, keys and values (B, T, 3C).
inline void require_heads(const Tensor& qkv, int64_t heads, const std::optional<Tensor>& gamma,
                          const std::optional<Tensor>& beta) {
  require_clouds("qkv", qkv, -1);
  const int64_t width = qkv.size(2);
  require(heads > 0 && width % (3 * heads) == 0, "qkv must have 3 * heads * D channels, got ", width);
  require(width == 0 || qkv.size(1) == 0 || qkv.stride(2) == 1, "qkv must have its channels side by side");
  require(gamma.has_value() == beta.has_value(), "gamma and beta must be given together");
}

// A head's channels are a few cache lines of each row, which the processor's own prefetching does not foresee.
constexpr int64_t kAhead = 16;  // rows

// The eight cache lines and less that a head has of a row `kAhead` rows on, in each of `count` tensors side by side.
template <class T>
POINTPEFT_INLINE void prefetch(const T* row, int64_t stride, int64_t third, int count, int64_t width) {
  for (int which = 0; which < count; ++which)
    for (int64_t i = 0; i < width; i += 64 / static_cast<int64_t>(sizeof(T)))
      __builtin_prefetch(row + kAhead * stride + which * third + i);
}

}  // namespace
}  // namespace pointpeft::attention
