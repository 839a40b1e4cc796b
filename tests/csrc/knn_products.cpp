// Runs what the threads of knn.cu's product kernel do, block after block, against plain loops; prints what differs.
#include "lanes.h"
// The lanes' words come before what uses them.
#include <algorithm>
#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include "expect.h"
#include "points/knn/knn_products.cuh"

using namespace pointpeft::knn;

// Every product of a batch is the sum over the channels in order, one rounding a step; nothing else is written.
template <class A>
void products(std::mt19937& generator, int64_t batch, int64_t m, int64_t n, int64_t first, int64_t chunk, int channels,
              int which) {
  std::normal_distribution<double> normal;
  std::vector<A> query(batch * m * channels), support(batch * n * channels);
  for (A& value : query) value = A(normal(generator));
  for (A& value : support) value = A(normal(generator));
  const A poison = std::numeric_limits<A>::quiet_NaN();
  std::vector<A> out(batch * chunk * n + 64, poison);
  const Products<A> p{query.data(), support.data(), m, n, first, chunk, channels, out.data()};
  ProductTiles<A> tiles;
  for (int64_t block = 0; block < batch * p.row_blocks() * p.column_blocks(); ++block)
    lanes::run([&](int thread) { product_block(p, tiles, block, thread); }, static_cast<int>(block * 7 % 32),
               kProductThreads / lanes::kLanes);
  bool good = true;
  for (int64_t b = 0; b < batch; ++b)
    for (int64_t i = 0; i < chunk; ++i)
      for (int64_t j = 0; j < n; ++j) {
        A sum = 0;
        for (int c = 0; c < channels; ++c)
          sum = std::fma(query[(b * m + first + i) * channels + c], support[(b * n + j) * channels + c], sum);
        good = good && out[(b * chunk + i) * n + j] == sum;
      }
  expect(good, "product", which);
  expect(std::all_of(out.begin() + batch * chunk * n, out.end(), [](A a) { return a != a; }), "end", which);
}

template <class A>
void all(int seed) {
  std::mt19937 generator(seed);
  products<A>(generator, 1, 1, 1, 0, 1, 17, 1);
  products<A>(generator, 2, 70, 65, 3, 67, 33, 2);
  products<A>(generator, 3, 64, 128, 0, 64, 16, 3);
  products<A>(generator, 2, 9, 130, 4, 5, 100, 4);
}

int main() {
  all<float>(1);
  all<double>(2);
  return verdict(16);
}
