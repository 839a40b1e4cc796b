// Runs what the threads of gather.cu and aggregate_neighbors.cu do, one after another, against plain loops;
// prints what differs.
#include "lanes.h"
// The lanes' words come before what uses them.
#include <limits>
#include <numeric>
#include <random>

#include "points/aggregate_neighbors/aggregate_neighbors.cuh"
#include "expect.h"

using namespace pointpeft::aggregate_neighbors;
using pointpeft::gather::first_of;
using pointpeft::gather::source_of;

struct Shape {
  int64_t batch, n, groups, s, channels;
};

// Many ties and duplicates; indices below 0 and past the end among them where `wrong`.
template <class T, class A>
struct Problem {
  Shape shape;
  std::vector<T> features, grad;
  std::vector<int64_t> idx, sorted, row_of;
  std::vector<A> weights;

  Problem(const Shape& shape, int seed, bool wrong) : shape(shape) {
    std::mt19937 generator(seed);
    const auto numbers = [&](auto& to, int64_t count, int distinct) {
      for (int64_t i = 0; i < count; ++i) to.push_back(static_cast<T>(int(generator() % distinct) - distinct / 2) / 8);
    };
    const int64_t places = shape.groups * shape.s;
    numbers(features, shape.batch * shape.n * shape.channels, 9);
    numbers(grad, shape.batch * shape.groups * shape.channels, 900);
    numbers(weights, shape.batch * places, 700);
    for (int64_t i = 0; i < shape.batch * places; ++i)
      idx.push_back(static_cast<int64_t>(generator() % (shape.n + (wrong ? 2 : 0))) - (wrong ? 1 : 0));
    sorted.resize(idx.size());
    row_of.resize(idx.size());
    for (int64_t b = 0; b < shape.batch; ++b) {
      const int64_t* keys = idx.data() + b * places;
      int64_t* order = row_of.data() + b * places;
      std::iota(order, order + places, int64_t{0});
      std::stable_sort(order, order + places, [&](int64_t i, int64_t j) { return keys[i] < keys[j]; });
      for (int64_t r = 0; r < places; ++r) sorted[b * places + r] = keys[order[r]];
    }
  }

  T feature(int64_t b, int64_t i, int64_t c) const {
    return i >= 0 && i < shape.n ? features[(b * shape.n + i) * shape.channels + c] : T(0);
  }
};

// Sums run in the order of the places in both, so they are equal to the last bit.
template <int64_t mode, int width, class T, class A, class Arg>
void pools(const Problem<T, A>& p, int which) {
  const auto [batch, n, groups, s, channels] = p.shape;
  std::vector<T> out(batch * groups * channels), sent(batch * n * channels);
  std::vector<Arg> argmax(out.size());
  for (int64_t e = 0; e < static_cast<int64_t>(out.size()) / width; ++e)
    pool_channels<mode, width>(e, p.features.data(), p.idx.data(), p.weights.data(), n, groups, s, channels, out.data(),
                               argmax.data());
  for (int64_t e = 0; e < static_cast<int64_t>(sent.size()) / width; ++e)
    sum_channels<mode, width>(e, p.grad.data(), p.sorted.data(), p.row_of.data(), p.weights.data(), argmax.data(), n,
                              groups, static_cast<uint32_t>(s), channels, sent.data());
  std::vector<A> pooled(out.size()), gradient(sent.size());
  std::vector<int64_t> best(out.size());
  bool same = true;
  for (int64_t g = 0; g < batch * groups; ++g)
    for (int64_t c = 0; c < channels; ++c) {
      const int64_t at = g * channels + c, b = g / groups;
      for (int64_t j = 0; j < s; ++j) {
        const A value = p.feature(b, p.idx[g * s + j], c);
        if (mode == kMax) {
          if (j == 0 || value > pooled[at]) {
            pooled[at] = value;
            best[at] = j;
          }
        } else {
          pooled[at] += mode == kWeighted ? p.weights[g * s + j] * value : value;
        }
      }
      if (mode == kMean) pooled[at] /= A(s);
      same =
          same && out[at] == static_cast<T>(pooled[at]) && (mode != kMax || argmax[at] == static_cast<Arg>(best[at]));
      for (int64_t j = 0; j < s; ++j) {
        const int64_t i = p.idx[g * s + j];
        if (i < 0 || i >= n || (mode == kMax && best[at] != j)) continue;
        const A received = mode == kMean ? A(p.grad[at]) / A(s) : A(p.grad[at]);
        gradient[(b * n + i) * channels + c] += mode == kWeighted ? p.weights[g * s + j] * received : received;
      }
    }
  expect(same, "pool", which);
  expect(std::equal(sent.begin(), sent.end(), gradient.begin(), [](T a, A b) { return a == static_cast<T>(b); }),
         "gradient", which);
}

template <class T, class A>
void rows(const Problem<T, A>& p, int which) {
  const auto [batch, n, groups, s, channels] = p.shape;
  const int64_t places = groups * s;
  bool same = true;
  for (int64_t e = 0; e < batch * places * channels; ++e) {
    const int64_t from = source_of(e, p.idx.data(), n, places, channels), r = e / channels;
    const T got = from >= 0 ? p.features[from] : T(0);
    same = same && got == p.feature(r / places, p.idx[r], e % channels);
  }
  expect(same, "gather", which);
  for (int64_t b = 0; b < batch; ++b)
    for (int64_t i = -1; i <= n; ++i) {
      const int64_t* keys = p.sorted.data() + b * places;
      expect(first_of(keys, places, i) == std::lower_bound(keys, keys + places, i) - keys, "first place", which);
    }
}

template <class T, class A>
void all(int seed) {
  int which = 0;
  for (const Shape& shape : {Shape{1, 1, 1, 1, 4}, Shape{2, 7, 3, 5, 8}, Shape{3, 16, 5, 2, 4}, Shape{1, 300, 9, 33, 4},
                             Shape{2, 5, 1, 257, 4}}) {
    for (const bool wrong : {false, true}) {
      const Problem<T, A> p(shape, ++seed, wrong);
      rows(p, ++which);
      pools<kMax, 1, T, A, int32_t>(p, which);
      pools<kMax, 4, T, A, int32_t>(p, which);
      if (shape.s <= 256) pools<kMax, 4, T, A, uint8_t>(p, which);
      pools<kMean, 4, T, A, uint8_t>(p, which);
      pools<kSum, 1, T, A, uint8_t>(p, which);
      pools<kWeighted, 4, T, A, uint8_t>(p, which);
    }
  }
}

// 2^31 words and more: the arithmetic needs 64 bits.
void large() {
  const int64_t n = int64_t{1} << 33, idx[4] = {0, n - 1, 5, n};
  expect(source_of(2 * 1000 + 7, idx, n, 2, 1000) == (n + 5) * 1000 + 7, "words past 2^32", 0);
  expect(source_of(1 * 1000, idx, n, 2, 1000) == (n - 1) * 1000, "the last row", 0);
  expect(source_of(3 * 1000, idx, n, 2, 1000) == -1, "one past it", 0);
}

int main() {
  all<float, float>(10);
  all<double, double>(20);
  all<float, double>(30);
  large();
  return verdict(1000);
}
