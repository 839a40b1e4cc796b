// The steps of furthest_point_sample: a team of threads samples one cloud, its points in registers or its distances in
// memory. What is a team (a block, a cluster) is for the kernel to say: it has `thread` of `threads`, and
// best(candidate, slot), the best candidate of all, which every thread gets. So a host with emulated lanes runs the
// same steps (tests/csrc).
#pragma once

#include "furthest_point_lanes.cuh"

namespace pointpeft::furthest_point_sample {

template <class A>
struct Task {
  const A* xyz;
  int64_t stride_b, stride_n, stride_c, n, num_samples;
  const int64_t *lengths, *starts;
  int64_t start;
  A min_sq_norm;
  A* distances;  // (B, N), where registers do not hold them
  int64_t* idx;

  // Nobody looks at the values of lengths and starts on a GPU unless asked to, so a cloud has at least one point and at
  // most all, and begins with one of its own: then every pick is one, as a real point beats padding.
  __device__ __forceinline__ Cloud<A> cloud(int64_t b) const {
    const int64_t length = lengths ? lengths[b] : n;
    return {xyz + b * stride_b, stride_n, stride_c, length < 1 ? 1 : length > n ? n : length};
  }
  __device__ __forceinline__ int64_t first_pick(int64_t b, int64_t length) const {
    const int64_t pick = starts ? starts[b] : start;
    return pick < 0 ? 0 : pick >= length ? length - 1 : pick;
  }
};

template <class A, class Index>
__device__ __forceinline__ Best<typename Types<A>::Bits, Index> nobody() {
  return {Types<A>::bits(kPadding<A>), static_cast<Index>(-1)};
}

// Picks one by one; `step(x, y, z)` takes the distances to a pick in and gives the thread's best candidate.
template <class A, class Team, class Step>
__device__ __forceinline__ void pick_all(const Task<A>& task, const Cloud<A>& cloud, int64_t b, Team& team,
                                         Step&& step) {
  int64_t pick = task.first_pick(b, cloud.length);
  for (int64_t m = 0; m < task.num_samples; ++m) {
    if (team.thread == 0) task.idx[b * task.num_samples + m] = pick;
    if (m + 1 == task.num_samples) break;  // the same for the whole team
    const A cx = cloud.at(pick, 0), cy = cloud.at(pick, 1), cz = cloud.at(pick, 2);
    pick = static_cast<int64_t>(team.best(step(cx, cy, cz), static_cast<int>(m & 1)).index);
  }
}

// Up to kPoints points a thread, in registers with their distances.
template <class Index, int kPoints, class A, class Team>
__device__ __forceinline__ void sample_held(const Task<A>& task, int64_t b, Team& team) {
  using Bits = typename Types<A>::Bits;
  const Cloud<A> cloud = task.cloud(b);
  A x[kPoints], y[kPoints], z[kPoints], distance[kPoints];
#pragma unroll
  for (int k = 0; k < kPoints; ++k) {
    const int64_t i = point_of<int64_t>(k, team.thread, team.threads);
    const bool real = i < cloud.length;
    x[k] = real ? cloud.at(i, 0) : A(0);
    y[k] = real ? cloud.at(i, 1) : A(0);
    z[k] = real ? cloud.at(i, 2) : A(0);
    distance[k] = real ? first_distance(x[k], y[k], z[k], task.min_sq_norm) : kPadding<A>;
  }
  pick_all(task, cloud, b, team, [&](A cx, A cy, A cz) {
    int held = 0;
    Bits most = Types<A>::bits(distance[0] = nearer(distance[0], x[0], y[0], z[0], cx, cy, cz));
#pragma unroll
    for (int k = 1; k < kPoints; ++k) {
      distance[k] = nearer(distance[k], x[k], y[k], z[k], cx, cy, cz);
      const Bits bits = Types<A>::bits(distance[k]);
      if (bits > most) {
        most = bits;
        held = k;
      }
    }
    const Index thread = static_cast<Index>(team.thread), threads = static_cast<Index>(team.threads);
    return Best<Bits, Index>{most, point_of<Index>(static_cast<Index>(held), thread, threads)};
  });
}

// Any number of points, their distances in memory; a thread reads only the distances that it wrote.
template <class Index, class A, class Team>
__device__ __forceinline__ void sample_in_memory(const Task<A>& task, int64_t b, Team& team) {
  using Bits = typename Types<A>::Bits;
  const Cloud<A> cloud = task.cloud(b);
  A* distances = task.distances + b * task.n;
  for (int64_t i = team.thread; i < cloud.length; i += team.threads)
    distances[i] = first_distance(cloud.at(i, 0), cloud.at(i, 1), cloud.at(i, 2), task.min_sq_norm);
  pick_all(task, cloud, b, team, [&](A cx, A cy, A cz) {
    Best<Bits, Index> best = nobody<A, Index>();
    for (int64_t i = team.thread; i < cloud.length; i += team.threads) {
      const A d = nearer(distances[i], cloud.at(i, 0), cloud.at(i, 1), cloud.at(i, 2), cx, cy, cz);
      distances[i] = d;
      const Bits bits = Types<A>::bits(d);
      if (bits > best.bits) best = {bits, static_cast<Index>(i)};
    }
    return best;
  });
}

}  // namespace pointpeft::furthest_point_sample
