// Products query·support of many channels on CUDA. |q|² - 2 q·s + |s|² cancels most digits of a product, so factors
// rounded to TF32 would give wrong neighbours: these products are in float32 or float64 with one rounding a step,
// whatever PyTorch's switches for its own matrix products say. A block makes 64 x 64 products from 16 channels at a
// time in shared memory, and a thread 4 x 4 of them in registers, so that each load serves four multiplications.
//
// Both factors stand channel by channel. Two barriers a step, 64 FMA a thread between them for 32 loads of shared
// memory; a factor is read N / 64 or M / 64 times from L2. A product sums its channels in order. Nothing here but
// loads, arithmetic and barriers, so that a host can run it too.
#pragma once

#include <cstdint>

namespace pointpeft::knn {

constexpr int kProductTile = 64;   // queries and points of a block
constexpr int kProductDepth = 16;  // channels at a time
constexpr int kProductThreads = 256;
constexpr int kProductSide = 4;  // a thread has so many queries and so many points, 16 apart

template <class A>
struct Products {
  const A *query, *support;  // contiguous [B, M, C] and [B, N, C]
  int64_t m, n, first, chunk;
  int channels;
  A* out;  // [B, chunk, N], of the queries from `first` on
  __host__ __device__ int64_t row_blocks() const { return (chunk + kProductTile - 1) / kProductTile; }
  __host__ __device__ int64_t column_blocks() const { return (n + kProductTile - 1) / kProductTile; }
};

// One more than a tile in each row: threads that write neighbouring channels of a point meet different banks.
template <class A>
struct ProductTiles {
  A query[kProductDepth][kProductTile + 1], support[kProductDepth][kProductTile + 1];
};

// Block `block` of the products, by its thread `thread`.
template <class A>
__device__ __forceinline__ void product_block(const Products<A>& p, ProductTiles<A>& tiles, int64_t block, int thread) {
  const int64_t rows = p.row_blocks(), columns = p.column_blocks();
  const int64_t b = block / (rows * columns), at = block % (rows * columns);
  const int64_t row = at / columns * kProductTile, column = at % columns * kProductTile;
  const A* query = p.query + (b * p.m + p.first + row) * p.channels;
  const A* support = p.support + (b * p.n + column) * p.channels;
  const int own_row = thread / 16, own_column = thread % 16;
  A sum[kProductSide][kProductSide] = {};
  for (int begin = 0; begin < p.channels; begin += kProductDepth) {
    for (int e = thread; e < kProductTile * kProductDepth; e += kProductThreads) {
      const int i = e / kProductDepth, c = e % kProductDepth, channel = begin + c;
      const bool inside = channel < p.channels;
      const int64_t from = static_cast<int64_t>(i) * p.channels + channel;
      tiles.query[c][i] = inside && row + i < p.chunk ? query[from] : A(0);
      tiles.support[c][i] = inside && column + i < p.n ? support[from] : A(0);
    }
    __syncthreads();
    const int depth = p.channels - begin < kProductDepth ? p.channels - begin : kProductDepth;
    for (int c = 0; c < depth; ++c) {
      A q[kProductSide], s[kProductSide];
#pragma unroll
      for (int i = 0; i < kProductSide; ++i) {
        q[i] = tiles.query[c][own_row + 16 * i];
        s[i] = tiles.support[c][own_column + 16 * i];
      }
#pragma unroll
      for (int i = 0; i < kProductSide; ++i)
#pragma unroll
        for (int j = 0; j < kProductSide; ++j) sum[i][j] = fma(q[i], s[j], sum[i][j]);
    }
    __syncthreads();
  }
#pragma unroll
  for (int i = 0; i < kProductSide; ++i)
#pragma unroll
    for (int j = 0; j < kProductSide; ++j) {
      const int64_t m = row + own_row + 16 * i, n = column + own_column + 16 * j;
      if (m < p.chunk && n < p.n) p.out[(b * p.chunk + m) * p.n + n] = sum[i][j];
    }
}

}  // namespace pointpeft::knn
