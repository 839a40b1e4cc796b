// Pruned farthest point sampling on CUDA, for clouds past the registers of a team: exact, index for index. Late in a
// sampling a pick changes only the distances of points around it, so most of the cloud need not be read: points are
// sorted along a Morton curve and cut into buckets of equal size, each with the box of its points, the largest distance
// inside and the lowest index that has it. A step asks every box, and only where the pick is nearer to the box than
// that largest distance is the bucket read again; the best of all largest distances is the next pick.
//
// Ownership: a thread keeps, in registers, the box and the best of kHeldBuckets buckets; a bucket is read again by the
// whole warp of its owner. A bucket's distances are read and written by the same lanes of the same warp throughout, so
// there is no queue, and no barrier beyond the one that finds the best of the team.
//
// The distance of a box rounds like that of a point, step by step, and rounding keeps order: it never exceeds that of a
// point inside, so nothing is pruned that could change. The cells of the curve decide only how well pruning works.
//
// Bytes: a key of 8 a point, sorted with an index of 8; then 4 coordinates-and-index words and a distance a point. A
// step reads 5 words and writes one for each point of the buckets that it visits, and nothing for the others.
#pragma once

#include "furthest_point_steps.cuh"

namespace pointpeft::furthest_point_sample {

constexpr int kHeldBuckets = 4;  // of a thread: 8 registers each in float32
constexpr int kAxisBits = 20;    // of a coordinate in a key: an outlier a thousand times as far leaves 1000 cells
constexpr int64_t kNeverKey = int64_t{1} << (3 * kAxisBits), kPaddingKey = kNeverKey + 1;  // behind all cells

// Moves bit i to bit 3 i.
__host__ __device__ constexpr uint64_t every_third(uint64_t v) {
  v = (v | v << 32) & 0x001f00000000ffffull;
  v = (v | v << 16) & 0x001f0000ff0000ffull;
  v = (v | v << 8) & 0x100f00f00f00f00full;
  v = (v | v << 4) & 0x10c30c30c30c30c3ull;
  return (v | v << 2) & 0x1249249249249249ull;
}
static_assert(every_third(0b1011) == 0b1000001001 && every_third(0xfffff) == 0x0249249249249249ull);

template <class A>
struct Box {
  A low[3], high[3];
};

template <class A>
__device__ __forceinline__ Box<A> empty_box() {
  constexpr A infinity = static_cast<A>(INFINITY);
  return {{infinity, infinity, infinity}, {-infinity, -infinity, -infinity}};
}

template <class A>
__device__ __forceinline__ void enclose(Box<A>& box, const Box<A>& other) {
#pragma unroll
  for (int c = 0; c < 3; ++c) {
    box.low[c] = fmin(box.low[c], other.low[c]);
    box.high[c] = fmax(box.high[c], other.high[c]);
  }
}

// The box around those of all lanes, in every lane.
template <class A>
__device__ __forceinline__ Box<A> warp_box(Box<A> box) {
  for (int offset = 16; offset > 0; offset >>= 1) {
    Box<A> other;
#pragma unroll
    for (int c = 0; c < 3; ++c) {
      other.low[c] = __shfl_xor_sync(kAllLanes, box.low[c], offset);
      other.high[c] = __shfl_xor_sync(kAllLanes, box.high[c], offset);
    }
    enclose(box, other);
  }
  return box;
}

template <class A>
__device__ __forceinline__ A box_sq_distance(const Box<A>& box, A cx, A cy, A cz) {
  const A dx = fmax(fmax(box.low[0] - cx, cx - box.high[0]), A(0));  // of NaN and a number the number
  const A dy = fmax(fmax(box.low[1] - cy, cy - box.high[1]), A(0));
  const A dz = fmax(fmax(box.low[2] - cz, cz - box.high[2]), A(0));
  return dx * dx + dy * dy + dz * dz;
}

// Which of at most 2^kAxisBits cells between low and high, each as wide as a power of two; halves, as the difference of
// huge coordinates would be infinite.
template <class A>
__device__ __forceinline__ uint64_t cell(A value, A low, A high) {
  const double extent = double(high) / 2 - double(low) / 2;
  if (!(extent > 0)) return 0;
  const double at = ldexp(double(value) / 2 - double(low) / 2, kAxisBits - 1 - ilogb(extent));
  return static_cast<uint64_t>(fmin(at, double((1 << kAxisBits) - 1)));
}

// What point i is sorted by, in a cloud with bounds `box`.
template <class A>
__device__ __forceinline__ int64_t key_of(const Cloud<A>& cloud, const Box<A>& box, int64_t i, A min_sq_norm) {
  if (i >= cloud.length) return kPaddingKey;
  const A p[3] = {cloud.at(i, 0), cloud.at(i, 1), cloud.at(i, 2)};
  if (first_distance(p[0], p[1], p[2], min_sq_norm) < 0) return kNeverKey;
  uint64_t key = 0;
#pragma unroll
  for (int c = 0; c < 3; ++c) key |= every_third(cell(p[c], box.low[c], box.high[c])) << c;
  return static_cast<int64_t>(key);
}

// The bounds of what can be picked among `from`, `from + step`, ...; a lane's share, and then its warp's.
template <class A>
__device__ __forceinline__ Box<A> bounds(const Cloud<A>& cloud, int64_t from, int64_t step, A min_sq_norm) {
  Box<A> box = empty_box<A>();
  for (int64_t i = from; i < cloud.length; i += step) {
    const A x = cloud.at(i, 0), y = cloud.at(i, 1), z = cloud.at(i, 2);
    if (!(first_distance(x, y, z, min_sq_norm) < 0)) enclose(box, {{x, y, z}, {x, y, z}});
  }
  return warp_box(box);
}

// A sorted point: 16 bytes in float32, read at once.
template <class A>
struct alignas(4 * sizeof(A)) Placed {
  A x, y, z;
  uint32_t index;
};
static_assert(sizeof(Placed<float>) == 16 && sizeof(Placed<double>) == 32);

template <class A>
using Winner = Best<typename Types<A>::Bits, uint32_t>;

// The buckets of all clouds, each cloud's one after another.
template <class A>
struct Buckets {
  Placed<A>* points;
  A* distances;
  Box<A>* boxes;
  Winner<A>* winners;  // before the first step
  int64_t a_cloud;     // how many
  int64_t size;        // points, a multiple of 32
};

// Points a bucket, so that a team of so many threads holds all buckets.
__host__ __device__ constexpr int64_t bucket_size(int64_t n, int64_t threads) {
  return ((n + kHeldBuckets * threads - 1) / (kHeldBuckets * threads) + 31) / 32 * 32;
}
static_assert(bucket_size(1, 512) == 32 && bucket_size(65536, 512) == 32 && bucket_size(65537, 512) == 64);

// Bucket `lane + 32 k` of a warp. Neighbours in space go to different blocks and then different warps: what one pick
// touches is shared out.
__host__ __device__ constexpr int64_t bucket_of(int64_t k, int64_t lane, int64_t warp, int64_t warps) {
  return (k * 32 + lane) * warps + warp;
}

// The better of two; of equal distances the lower index. Buckets are not in the order of the cloud.
template <class Bits, class Index>
__device__ __forceinline__ Best<Bits, Index> better(const Best<Bits, Index>& a, const Best<Bits, Index>& b) {
  return b.bits > a.bits || (b.bits == a.bits && b.index < a.index) ? b : a;
}

// A warp fills bucket j of cloud b with the points that `order` (B, N) puts there.
template <class A>
__device__ __forceinline__ void fill_bucket(const Task<A>& task, const int64_t* order, const Buckets<A>& buckets,
                                            int64_t b, int64_t j, int lane) {
  const Cloud<A> cloud = task.cloud(b);
  const int64_t bucket = b * buckets.a_cloud + j;
  Box<A> box = empty_box<A>();
  Winner<A> winner = nobody<A, uint32_t>();
  for (int64_t p = lane; p < buckets.size; p += 32) {
    const int64_t place = j * buckets.size + p, i = place < task.n ? order[b * task.n + place] : task.n;
    const bool real = i < cloud.length;
    const Placed<A> point = real ? Placed<A>{cloud.at(i, 0), cloud.at(i, 1), cloud.at(i, 2), static_cast<uint32_t>(i)}
                                 : Placed<A>{0, 0, 0, ~0u};
    const A distance = real ? first_distance(point.x, point.y, point.z, task.min_sq_norm) : kPadding<A>;
    if (!(distance < 0)) enclose(box, {{point.x, point.y, point.z}, {point.x, point.y, point.z}});
    winner = better(winner, {Types<A>::bits(distance), point.index});
    buckets.points[bucket * buckets.size + p] = point;
    buckets.distances[bucket * buckets.size + p] = distance;
  }
  box = warp_box(box);
  winner = warp_best(winner);
  if (lane != 0) return;
  buckets.boxes[bucket] = box;
  buckets.winners[bucket] = winner;
}

// A warp takes the distances to a pick into a bucket; its winner, in every lane.
template <class A>
__device__ __forceinline__ Winner<A> take_in(const Placed<A>* points, A* distances, int64_t size, int lane, A cx, A cy,
                                             A cz) {
  Winner<A> winner = nobody<A, uint32_t>();
#pragma unroll 2
  for (int64_t p = lane; p < size; p += 32) {
    const Placed<A> point = points[p];
    const A d = nearer(distances[p], point.x, point.y, point.z, cx, cy, cz);
    distances[p] = d;
    winner = better(winner, {Types<A>::bits(d), point.index});
  }
  return warp_best(winner);
}

// All picks of cloud b by a team that holds its buckets.
template <class A, class Team>
__device__ __forceinline__ void sample_in_buckets(const Task<A>& task, const Buckets<A>& buckets, int64_t b,
                                                  Team& team) {
  Box<A> box[kHeldBuckets];
  Winner<A> winner[kHeldBuckets];
#pragma unroll
  for (int k = 0; k < kHeldBuckets; ++k) {
    const int64_t j = bucket_of(k, team.lane(), team.warp(), team.warps());
    const bool real = j < buckets.a_cloud;
    box[k] = real ? buckets.boxes[b * buckets.a_cloud + j] : empty_box<A>();
    winner[k] = real ? buckets.winners[b * buckets.a_cloud + j] : nobody<A, uint32_t>();
  }
  pick_all(task, task.cloud(b), b, team, [&](A cx, A cy, A cz) {
#pragma unroll
    for (int k = 0; k < kHeldBuckets; ++k) {
      const bool near = Types<A>::bits(box_sq_distance(box[k], cx, cy, cz)) < winner[k].bits;
      for (unsigned wanted = __ballot_sync(kAllLanes, near); wanted != 0; wanted &= wanted - 1) {
        const int owner = __ffs(wanted) - 1;
        const int64_t at = (b * buckets.a_cloud + bucket_of(k, owner, team.warp(), team.warps())) * buckets.size;
        const Winner<A> won =
            take_in(buckets.points + at, buckets.distances + at, buckets.size, team.lane(), cx, cy, cz);
        if (team.lane() == owner) winner[k] = won;
      }
    }
    Winner<A> best = winner[0];
#pragma unroll
    for (int k = 1; k < kHeldBuckets; ++k) best = better(best, winner[k]);
    return best;
  });
}

}  // namespace pointpeft::furthest_point_sample
