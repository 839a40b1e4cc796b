// Splits a cloud into leaves of near points, the way of a k-d tree: halves along the widest axis, again and again.
#pragma once

#include "pointpeft.h"

namespace pointpeft {
namespace {

template <class A>
using BitsOf = std::conditional_t<sizeof(A) == 8, int64_t, int32_t>;

template <class A>
struct Point {
  A c[3];
  BitsOf<A> id;
};

struct Range {
  int64_t begin, end;
};

// Moves points with c[axis] <= pivot to the front; both sides keep their order. Returns how many they are.
template <class A>
int64_t partition(Point<A>* points, int64_t n, Point<A>* spare, int axis, A pivot) {
  int64_t left = 0, right = 0;
  for (int64_t i = 0; i < n; ++i) {  // without a branch, which would be mispredicted half of the time
    const Point<A> point = points[i];
    const bool small = point.c[axis] <= pivot;
    points[left] = point;
    spare[right] = point;
    left += small;
    right += !small;
  }
  std::copy(spare, spare + right, points + left);
  return left;
}

// Splits at about the median of the widest axis, both estimated from a few points. Returns the size of the left side,
// never 0 or n.
template <class A>
int64_t split(Point<A>* points, int64_t n, Point<A>* spare) {
  constexpr int kSample = 31;
  A sample[3][kSample];
  const int count = static_cast<int>(std::min<int64_t>(n > 1024 ? kSample : kSample / 2, n));
  int axis = 0;
  A widest = -1;
  for (int c = 0; c < 3; ++c) {
    for (int s = 0; s < count; ++s) sample[c][s] = points[s * n / count].c[c];
    const auto [low, high] = std::minmax_element(sample[c], sample[c] + count);
    if (*high - *low > widest) {
      widest = *high - *low;
      axis = c;
    }
  }
  std::nth_element(sample[axis], sample[axis] + (count - 1) / 2, sample[axis] + count);
  const int64_t left = partition(points, n, spare, axis, sample[axis][(count - 1) / 2]);
  if (left < n) return left;
  // Most of the sample was the largest value there is: the middle of the box has points on both sides.
  for (int c = 0; c < 3; ++c) {
    A low = points[0].c[c], high = low;
    for (int64_t i = 1; i < n; ++i) {
      low = std::min(low, points[i].c[c]);
      high = std::max(high, points[i].c[c]);
    }
    const A middle = low / 2 + high / 2;
    if (low < high) return partition(points, n, spare, c, middle < high ? std::max(low, middle) : low);
  }
  return n / 2;  // all points coincide
}

template <class A>
void split_part(Point<A>* points, Range range, Point<A>* spare, int64_t most, std::vector<Range>& leaves) {
  std::vector<Range> waiting{range};
  while (!waiting.empty()) {
    const Range r = waiting.back();
    waiting.pop_back();
    if (r.end - r.begin <= most) {
      leaves.push_back(r);
    } else {
      const int64_t middle = r.begin + split(points + r.begin, r.end - r.begin, spare + r.begin);
      waiting.push_back({middle, r.end});
      waiting.push_back({r.begin, middle});
    }
  }
}

// Reorders `points` so that each of the ranges returned, one after another, is a leaf of `most` points or fewer; inside
// a leaf, and where points coincide across leaves too, they keep their order.
template <class A>
std::vector<Range> split_into_leaves(Point<A>* points, int64_t n, int64_t most) {
  std::unique_ptr<Point<A>[]> spare(new Point<A>[n]);
  // A few splits one after another, so that the threads have parts to work on; inside a parallel region one suffices.
  std::vector<Range> parts{{0, n}};
  const int64_t threads = torch::stable::get_num_threads();
  while (threads > 1 && static_cast<int64_t>(parts.size()) < 4 * threads) {
    std::vector<Range> halves;
    for (const Range r : parts) {
      const int64_t middle =
          r.end - r.begin > most ? r.begin + split(points + r.begin, r.end - r.begin, spare.get()) : r.end;
      halves.push_back({r.begin, middle});
      halves.push_back({middle, r.end});
    }
    parts.swap(halves);
  }
  std::vector<std::vector<Range>> leaves(parts.size());
  torch::stable::parallel_for(0, parts.size(), 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i)
      if (parts[i].begin < parts[i].end) split_part(points, parts[i], spare.get(), most, leaves[i]);
  });
  std::vector<Range> all;
  for (const auto& some : leaves) all.insert(all.end(), some.begin(), some.end());
  return all;
}

}  // namespace
}  // namespace pointpeft
