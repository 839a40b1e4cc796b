// Runs the warp functions of csrc on 32 emulated lanes against the standard library; prints what differs.
#include "lanes.h"
// The lanes' words come before what uses them.
#include <limits>
#include <random>
#include <utility>

#include "expect.h"
#include "points/furthest_point_sample/furthest_point_buckets.cuh"
#include "points/knn/knn_selection.cuh"

using namespace pointpeft::furthest_point_sample;
using namespace pointpeft::knn;

template <class A>
using Pair = std::pair<A, uint32_t>;

// Few distinct distances, so that ties are common; zero, denormal and infinite ones among them.
template <class A>
std::vector<Pair<A>> pairs(int count, int seed) {
  std::mt19937 generator(seed);
  const A odd[] = {A(0), std::numeric_limits<A>::denorm_min(), std::numeric_limits<A>::infinity(), A(1)};
  std::vector<Pair<A>> result;
  for (int i = 0; i < count; ++i) {
    const auto draw = generator() % 24;
    result.push_back({draw < 4 ? odd[draw] : A(draw) / A(7), static_cast<uint32_t>(i)});
  }
  std::shuffle(result.begin(), result.end(), generator);
  return result;
}

template <class A>
void keys_order_as_pairs() {
  const auto values = pairs<A>(300, 1);
  for (int i = 0; i + 1 < 300; ++i) {
    const auto a = Key<A>::make(values[i].first, values[i].second),
               b = Key<A>::make(values[i + 1].first, values[i + 1].second);
    expect((a < b) == (values[i] < values[i + 1]), "order of keys", i);
    expect(a.distance() == values[i].first && a.index() == values[i].second, "key and back", i);
    expect(a < Key<A>::last(), "last key", i);
  }
  const auto nan = Key<A>::make(std::numeric_limits<A>::quiet_NaN(), 0);
  const auto infinite = Key<A>::make(std::numeric_limits<A>::infinity(), 0xffffffffu);
  expect(infinite < nan && nan < Key<A>::last(), "NaN behind infinity", 0);
  const auto negative_nan = Key<A>::make(-std::numeric_limits<A>::quiet_NaN(), 0);
  expect(infinite < negative_nan && negative_nan < Key<A>::last(), "NaN with a sign behind infinity", 0);
}

template <class A>
void warps_sort() {
  for (int seed = 0; seed < 40; ++seed) {
    auto values = pairs<A>(32, seed);
    std::vector<Pair<A>> sorted(32);
    lanes::run(
        [&](int lane) {
          const auto key = sort_warp(Key<A>::make(values[lane].first, values[lane].second), lane);
          sorted[lane] = {key.distance(), key.index()};
        },
        seed % 32);
    std::sort(values.begin(), values.end());
    expect(sorted == values, "sort_warp", seed);
  }
}

template <int P, class A>
void selection_keeps_the_smallest(int count, int wanted, int seed) {
  auto values = pairs<A>(count, seed);
  Key<A> slots[64];
  std::vector<Pair<A>> kept(32 * P);
  lanes::run(
      [&](int lane) {
        Selection<P, Key<A>> selection(slots, wanted, lane);
        for (int i = 0; i < count; i += 32) {
          const bool real = i + lane < count;
          const auto& value = values[real ? i + lane : 0];
          selection.offer(Key<A>::make(value.first, value.second), real, Key<A>::make(A(0), 0));
        }
        selection.finish();
        for (int j = 0; j < P; ++j) kept[32 * j + lane] = {selection.best[j].distance(), selection.best[j].index()};
      },
      seed % 32);
  std::sort(values.begin(), values.end());
  const int take = std::min(count, wanted);
  expect(std::equal(kept.begin(), kept.begin() + take, values.begin()), "selection", 1000 * P + seed);
}

template <class A>
void selections() {
  int seed = 0;
  for (int count : {1, 31, 32, 33, 64, 200, 777}) {
    for (int wanted : {1, 7, 32}) selection_keeps_the_smallest<1, A>(count, wanted, ++seed);
    for (int wanted : {33, 64}) selection_keeps_the_smallest<2, A>(count, wanted, ++seed);
    for (int wanted : {65, 100, 128}) selection_keeps_the_smallest<4, A>(count, wanted, ++seed);
  }
}

template <class A, class Index>
void winners() {
  using Bits = typename Types<A>::Bits;
  for (int seed = 0; seed < 60; ++seed) {
    std::mt19937 generator(seed);
    A distance[32];
    for (auto& d : distance) {
      const auto draw = generator() % 6;
      d = draw == 0 ? kNever<A> : draw == 1 ? kPadding<A> : seed % 5 == 0 ? kNever<A> : A(draw) / 4;
    }
    // As integers, the marks below zero order by magnitude: a point that is never picked still beats a lane without
    // one.
    int best = 0;
    const auto rank = [](A d) { return Types<A>::bits(d); };
    for (int i = 1; i < 32; ++i)
      if (rank(distance[i]) > rank(distance[best])) best = i;
    lanes::run(
        [&](int lane) {
          const auto won = warp_best(Best<Bits, Index>{Types<A>::bits(distance[lane]), static_cast<Index>(lane + 100)});
          expect(won.index == static_cast<Index>(best + 100) && won.bits == rank(distance[best]), "warp_best", seed);
        },
        seed % 32);
  }
  expect(Types<A>::bits(kNever<A>) > Types<A>::bits(kPadding<A>), "a point beats padding", 0);
  expect(Types<A>::bits(A(0)) > Types<A>::bits(kNever<A>), "a distance beats never", 0);
  expect(Types<A>::bits(std::numeric_limits<A>::infinity()) > Types<A>::bits(A(1)), "infinity beats all", 0);
}

template <class A>
void distances() {
  const A nan = std::numeric_limits<A>::quiet_NaN(), infinity = std::numeric_limits<A>::infinity();
  expect(first_distance<A>(nan, 0, 0, 0) == kNever<A>, "NaN is never picked", 0);
  expect(first_distance<A>(0, -infinity, 0, 0) == kNever<A>, "infinity is never picked", 0);
  expect(first_distance<A>(0, 0, 0, 0) == infinity, "the origin counts without a threshold", 0);
  expect(first_distance<A>(A(0.01), 0, 0, A(1e-3)) == kNever<A>, "close to the origin", 0);
  expect(first_distance<A>(A(0.1), 0, 0, A(1e-3)) == infinity, "far from the origin", 0);
  expect(nearer<A>(infinity, 1, 2, 3, 1, 2, 1) == 4, "distance", 0);
  expect(nearer<A>(3, 1, 2, 3, 1, 2, 1) == 3, "the smaller one stays", 0);
  expect(nearer<A>(kNever<A>, 1, 2, 3, 1, 2, 1) == kNever<A>, "a mark stays", 0);
  expect(nearer<A>(2, nan, 0, 0, 0, 0, 0) == 2, "NaN does not spread", 0);
}

// A bound that exceeded the distance of a point inside, by one rounding, would prune what can change.
template <class A>
void boxes() {
  std::mt19937 generator(7);
  for (int i = 0; i < 20000; ++i) {
    const A scale = std::ldexp(A(1), static_cast<int>(generator() % 40) - 20);
    std::uniform_real_distribution<A> draw(-scale, scale);
    std::uniform_real_distribution<A> offset(-100, 100);
    const A shift = i % 2 == 0 ? A(0) : offset(generator);
    A p[3], q[3], c[3];
    for (int k = 0; k < 3; ++k) {
      p[k] = shift + draw(generator);
      q[k] = shift + draw(generator);
      c[k] = i % 3 == 0 ? p[k] : shift + 4 * draw(generator);
    }
    Box<A> box{{p[0], p[1], p[2]}, {p[0], p[1], p[2]}};
    const A infinity = std::numeric_limits<A>::infinity(), alone = box_sq_distance(box, c[0], c[1], c[2]);
    const A of_p = nearer(infinity, p[0], p[1], p[2], c[0], c[1], c[2]);
    expect(alone == of_p, "a box around one point is as far as the point", i);
    enclose(box, {{q[0], q[1], q[2]}, {q[0], q[1], q[2]}});
    const A both = box_sq_distance(box, c[0], c[1], c[2]), of_q = nearer(infinity, q[0], q[1], q[2], c[0], c[1], c[2]);
    expect(both <= of_p && both <= of_q, "a box is no farther than what is inside", i);
    for (int k = 0; k < 3; ++k) {
      const uint64_t at_p = cell(p[k], box.low[k], box.high[k]), at_q = cell(q[k], box.low[k], box.high[k]);
      expect(at_p < (1u << kAxisBits) && at_q < (1u << kAxisBits), "a cell", i);
      expect(p[k] <= q[k] ? at_p <= at_q : at_q <= at_p, "cells go up with coordinates", i);
    }
  }
  const A most = std::numeric_limits<A>::max(), least = std::numeric_limits<A>::denorm_min();
  expect(cell(most, -most, most) == (1u << kAxisBits) - 1 && cell(-most, -most, most) == 0, "the widest extent", 0);
  expect(cell(least, A(0), least) < (1u << kAxisBits), "the smallest extent", 0);
  expect(cell(A(3), A(3), A(3)) == 0, "no extent", 0);
  expect(!(box_sq_distance(empty_box<A>(), A(0), A(0), A(0)) < most), "nothing is near an empty box", 0);
}

// Every bucket has one owner, and neighbours go to different warps.
void owners() {
  const int warps = 6;
  std::vector<int> owned(warps * 32 * kHeldBuckets);
  for (int k = 0; k < kHeldBuckets; ++k)
    for (int warp = 0; warp < warps; ++warp)
      for (int lane = 0; lane < 32; ++lane) ++owned[bucket_of(k, lane, warp, warps)];
  for (size_t j = 0; j < owned.size(); ++j) expect(owned[j] == 1, "owner of a bucket", static_cast<int>(j));
  expect(bucket_of(0, 0, 1, warps) == bucket_of(0, 0, 0, warps) + 1, "neighbours", 0);
}

int main() {
  keys_order_as_pairs<float>();
  keys_order_as_pairs<double>();
  warps_sort<float>();
  warps_sort<double>();
  selections<float>();
  selections<double>();
  winners<float, uint32_t>();
  winners<double, unsigned long long>();
  distances<float>();
  distances<double>();
  boxes<float>();
  boxes<double>();
  owners();
  return verdict(1000);
}
