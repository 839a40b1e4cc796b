// What a thread of chamfer_distance does, forward and backward: it stands for one point and walks the other cloud
// through tiles in shared memory, two barriers a tile. Nothing here but loads, arithmetic and barriers, so that a host
// can run it too (tests/csrc). Sums go in the order of the points, without atomics: the same bits on every run.
#pragma once

#include <cmath>
#include <cstdint>

namespace pointpeft::chamfer_distance {

constexpr int kMostThreads = 128;  // of a block

// Clouds of one tensor [B, N, 3].
struct Clouds {
  const void* data;
  int64_t length, stride_b, stride_n, stride_c;
};

// Thread `number` of `count` in its block, for point i of cloud b; past the end of the cloud it helps with the tiles.
struct Worker {
  int64_t b, i;
  int number, count;
};

template <class A>
struct Tile {
  A x[kMostThreads], y[kMostThreads], z[kMostThreads];
};

template <class T, class A>
__device__ __forceinline__ void load_point(const Clouds& clouds, int64_t b, int64_t i, A& x, A& y, A& z) {
  const T* p = static_cast<const T*>(clouds.data) + b * clouds.stride_b + i * clouds.stride_n;
  x = static_cast<A>(p[0]);
  y = static_cast<A>(p[clouds.stride_c]);
  z = static_cast<A>(p[2 * clouds.stride_c]);
}

// How many points are in the tile that begins with `base`.
__device__ __forceinline__ int tile_length(const Clouds& clouds, int64_t base, int most) {
  return clouds.length - base < most ? static_cast<int>(clouds.length - base) : most;
}

// The nearest of `support`, ties to the lowest index. A NaN or infinite distance is never below the best: non-finite
// points are not taken.
template <class T, class A>
__device__ __forceinline__ void nearest_point(const Clouds& queries, const Clouds& support, const Worker& me,
                                              Tile<A>& tile, A* sq_distance, int64_t* idx) {
  A x = 0, y = 0, z = 0, best = static_cast<A>(INFINITY);
  if (me.i < queries.length) load_point<T>(queries, me.b, me.i, x, y, z);
  int64_t at = 0;
  for (int64_t base = 0; base < support.length; base += me.count) {
    if (base + me.number < support.length)
      load_point<T>(support, me.b, base + me.number, tile.x[me.number], tile.y[me.number], tile.z[me.number]);
    __syncthreads();
    const int count = tile_length(support, base, me.count);
    int near = -1;
#pragma unroll 8
    for (int j = 0; j < count; ++j) {
      const A dx = x - tile.x[j], dy = y - tile.y[j], dz = z - tile.z[j];
      const A d = dx * dx + dy * dy + dz * dz;
      if (d < best) {
        best = d;
        near = j;
      }
    }
    if (near >= 0) at = base + near;
    __syncthreads();
  }
  if (me.i < queries.length) {
    sq_distance[me.b * queries.length + me.i] = best;
    idx[me.b * queries.length + me.i] = at;
  }
}

// Gradients of the squared distances of one side, and for each of its points the nearest of the other.
template <class A>
struct Side {
  const A* grad;
  int64_t stride_b, stride_n;
  const int64_t* idx;
};

// d |p - q|^2 = 2 (p - q) (dp - dq): point i of `points` takes part in its own pair, and in those of the points of
// `other` whose nearest it is, which a walk over their indices finds.
template <class T, class A>
__device__ __forceinline__ void gradient_of_point(const Clouds& points, const Clouds& other, const Side<A>& own,
                                                  const Side<A>& theirs, const Worker& me, int64_t* tile, T* out) {
  A x = 0, y = 0, z = 0, sum_x = 0, sum_y = 0, sum_z = 0;
  const auto add = [&](int64_t j, A grad) {
    A ox, oy, oz;
    load_point<T>(other, me.b, j, ox, oy, oz);
    sum_x += 2 * grad * (x - ox);
    sum_y += 2 * grad * (y - oy);
    sum_z += 2 * grad * (z - oz);
  };
  if (me.i < points.length) {
    load_point<T>(points, me.b, me.i, x, y, z);
    const int64_t near = own.idx[me.b * points.length + me.i];
    if (near >= 0 && near < other.length) add(near, own.grad[me.b * own.stride_b + me.i * own.stride_n]);
  }
  for (int64_t base = 0; base < other.length; base += me.count) {
    if (base + me.number < other.length) tile[me.number] = theirs.idx[me.b * other.length + base + me.number];
    __syncthreads();
    const int count = tile_length(other, base, me.count);
    if (me.i < points.length)
      for (int j = 0; j < count; ++j)
        if (tile[j] == me.i) add(base + j, theirs.grad[me.b * theirs.stride_b + (base + j) * theirs.stride_n]);
    __syncthreads();
  }
  if (me.i < points.length) {
    T* to = out + (me.b * points.length + me.i) * 3;
    to[0] = static_cast<T>(sum_x);
    to[1] = static_cast<T>(sum_y);
    to[2] = static_cast<T>(sum_z);
  }
}

}  // namespace pointpeft::chamfer_distance
