// Runs what the threads of chamfer_distance.cu do, block after block, against plain loops; prints what differs.
#include "lanes.h"
// The lanes' words come before what uses them.
#include <limits>
#include <random>

#include "points/chamfer_distance/chamfer_distance.cuh"
#include "expect.h"

using namespace pointpeft::chamfer_distance;

// Clouds [B, N, 3] on a lattice, so that distances tie, with poison around them; channels side by side or apart.
template <class T>
struct Cloud {
  int64_t batch, length, stride_b, stride_n, stride_c;
  std::vector<T> data;

  Cloud(std::mt19937& generator, int64_t batch, int64_t length, bool apart, bool finite)
      : batch(batch), length(length), stride_b(3 * length + 5), stride_n(apart ? 1 : 3), stride_c(apart ? length : 1) {
    data.assign(batch * stride_b, std::numeric_limits<T>::quiet_NaN());
    for (int64_t b = 0; b < batch; ++b)
      for (int64_t i = 0; i < length; ++i)
        for (int c = 0; c < 3; ++c) at(b, i, c) = T(int(generator() % 7) - 3) / 4;
    if (!finite && length > 2) at(0, 1, 1) = std::numeric_limits<T>::quiet_NaN();
    if (!finite && length > 2) at(0, 2, 0) = std::numeric_limits<T>::infinity();
  }
  T& at(int64_t b, int64_t i, int c) { return data[b * stride_b + i * stride_n + c * stride_c]; }
  Clouds view() const { return {data.data(), length, stride_b, stride_n, stride_c}; }
};

// Every block of `warps` warps that the points of all clouds need.
template <class Body>
void blocks(const Clouds& points, int64_t batch, int warps, Body&& body) {
  const int count = warps * lanes::kLanes;
  for (int64_t b = 0; b < batch; ++b)
    for (int64_t first = 0; first < points.length; first += count)
      lanes::run([&](int thread) { body(Worker{b, first + thread, thread, count}); }, static_cast<int>(b * 7 % 32),
                 warps);
}

template <class T>
struct Nearest {
  std::vector<T> sq_distance;
  std::vector<int64_t> idx;
  explicit Nearest(int64_t count) : sq_distance(count, T(-1)), idx(count, -1) {}
};

template <class T>
Nearest<T> emulated(const Cloud<T>& queries, const Cloud<T>& support, int warps) {
  Nearest<T> found(queries.batch * queries.length);
  Tile<T> tile;
  blocks(queries.view(), queries.batch, warps, [&](const Worker& me) {
    nearest_point<T>(queries.view(), support.view(), me, tile, found.sq_distance.data(), found.idx.data());
  });
  return found;
}

template <class T>
Nearest<T> plain(Cloud<T>& queries, Cloud<T>& support) {
  Nearest<T> found(queries.batch * queries.length);
  for (int64_t b = 0; b < queries.batch; ++b)
    for (int64_t i = 0; i < queries.length; ++i) {
      T best = std::numeric_limits<T>::infinity();
      int64_t at = 0;
      for (int64_t j = 0; j < support.length; ++j) {
        T d = 0;
        for (int c = 0; c < 3; ++c) {
          const T step = queries.at(b, i, c) - support.at(b, j, c);
          d += step * step;
        }
        if (d < best) best = d, at = j;
      }
      found.sq_distance[b * queries.length + i] = best;
      found.idx[b * queries.length + i] = at;
    }
  return found;
}

// Sums run in the order of the points in both, so they are equal to the last bit.
template <class T>
void gradients(Cloud<T>& points, Cloud<T>& other, const Nearest<T>& own, const Nearest<T>& theirs,
               std::mt19937& generator, int warps, int which) {
  const auto numbers = [&](const Cloud<T>& of, int64_t stride) {  // what lies between is another's
    std::vector<T> grad(stride * of.batch * of.length);
    for (T& g : grad) g = T(int(generator() % 900) - 450) / 64;
    return grad;
  };
  const std::vector<T> grad_own = numbers(points, 2), grad_theirs = numbers(other, 3);
  const Side<T> side{grad_own.data(), 2 * points.length, 2, own.idx.data()};
  const Side<T> side_theirs{grad_theirs.data(), 3 * other.length, 3, theirs.idx.data()};
  std::vector<T> out(points.batch * points.length * 3), expected(out.size());
  int64_t tile[kMostThreads];
  blocks(points.view(), points.batch, warps, [&](const Worker& me) {
    gradient_of_point<T>(points.view(), other.view(), side, side_theirs, me, tile, out.data());
  });
  for (int64_t b = 0; b < points.batch; ++b)
    for (int64_t i = 0; i < points.length; ++i)
      for (int c = 0; c < 3; ++c) {
        const auto term = [&](int64_t j, T grad) { return 2 * grad * (points.at(b, i, c) - other.at(b, j, c)); };
        T& sum = expected[(b * points.length + i) * 3 + c];
        sum += term(own.idx[b * points.length + i], grad_own[2 * (b * points.length + i)]);
        for (int64_t j = 0; j < other.length; ++j)
          if (theirs.idx[b * other.length + j] == i) sum += term(j, grad_theirs[3 * (b * other.length + j)]);
      }
  expect(std::equal(out.begin(), out.end(), expected.begin(), [](T a, T b) { return a == b || (a != a && b != b); }),
         "gradient", which);
}

template <class T>
void all(int seed) {
  std::mt19937 generator(seed);
  int which = 0;
  for (const auto& [n, m] :
       std::vector<std::pair<int64_t, int64_t>>{{1, 1}, {5, 40}, {32, 32}, {33, 7}, {130, 300}, {65, 128}})
    for (const int warps : {1, 2, 4})
      for (const bool finite : {true, false}) {
        Cloud<T> a(generator, 2, n, warps == 2, finite), b(generator, 2, m, warps == 4, finite);
        const Nearest<T> to_b = emulated(a, b, warps), to_a = emulated(b, a, warps), exact = plain(a, b);
        ++which;
        expect(to_b.sq_distance == exact.sq_distance, "distance", which);
        expect(to_b.idx == exact.idx, "index", which);
        gradients(a, b, to_b, to_a, generator, warps, which);
        gradients(b, a, to_a, to_b, generator, warps, which);
      }
}

int main() {
  all<float>(1);
  all<double>(2);
  return verdict(288);
}
