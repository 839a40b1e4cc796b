// Which kernel of furthest_point_sample.cu takes a cloud, and how many blocks and registers: plain C++, tested on the
// host (tests/csrc). A step is a chain of latencies that more blocks do not shorten, so a cloud gets more than one only
// where the work of a step outweighs the exchange between blocks, and while multiprocessors would otherwise be idle.
// What no number of blocks holds in registers is sorted into buckets where enough samples pay for the sort.
//
// Cycles a step, estimated from the instructions for sm_90, not measured: 300 for the chain of pick, reduction, barrier
// and reduction; 400 for an exchange over a cluster; 74 for 1000 points of a block. Blocks that find no multiprocessor
// wait for those that did.
#pragma once

#include <cstdint>

namespace pointpeft::furthest_point_sample {

struct Plan {
  enum Way { held, buckets, memory } way;
  int threads, points, blocks;  // of a block, of a thread in registers, of a cluster (1: none)
  constexpr bool operator==(const Plan& o) const {
    return way == o.way && threads == o.threads && points == o.points && blocks == o.blocks;
  }
};

// What a device is able to run.
struct DeviceLimits {
  int processors;
  int most_blocks;  // of a cluster; 1 where there are none
};

// Registers for points: 4 a point in float32, 8 in float64, beside some 30 of at most 128 a thread with 512 threads.
template <class A>
constexpr int kMostHeld = sizeof(A) == 4 ? 24 : 8;

// Below this many samples sorting is not worth it: the first picks change most buckets. Counted on 200 000 points of a
// cube in buckets of 32, 64 picks read 12 %, 256 picks 4.5 % and 1024 picks 1.9 % of what reading all points reads.
constexpr int64_t kWorthSorting = 64;

template <class A>
constexpr Plan plan_samples(int64_t n, int64_t num_samples, int64_t batch, DeviceLimits limits) {
  if (n <= 512) return {Plan::held, 128, 4, 1};
  if (n <= 1024) return {Plan::held, 256, 4, 1};
  if (n <= 2048) return {Plan::held, 256, 8, 1};
  Plan best{Plan::memory, 1024, 0, limits.most_blocks};
  int64_t least = INT64_MAX;
  for (int blocks = 1; blocks <= limits.most_blocks; blocks *= 2) {
    for (const int points : {4, 8, 16, 24}) {
      if (points > kMostHeld<A> || int64_t{512} * points * blocks < n) continue;
      const int64_t rounds = (batch * blocks + limits.processors - 1) / limits.processors;
      const int64_t cycles = rounds * (300 + (blocks > 1 ? 400 : 0) + 74 * 512 * points / 1000);
      if (cycles < least) {
        least = cycles;
        best = {Plan::held, 512, points, blocks};
      }
    }
  }
  if (best.way == Plan::held) return best;
  if (num_samples >= kWorthSorting && n < INT32_MAX) return {Plan::buckets, 512, 0, limits.most_blocks};
  return best;
}

}  // namespace pointpeft::furthest_point_sample
