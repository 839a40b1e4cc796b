// Runs the three ways of furthest_point_sample.cu on emulated warps: reads a problem from standard input, writes
// the picks to standard output. What the kernels do with one thread of the grid after another is done here in a loop.
#include "lanes.h"
// The lanes' words come before what uses them.
#include <cstdio>
#include <numeric>

#include "points/furthest_point_sample/furthest_point_buckets.cuh"
#include "points/furthest_point_sample/furthest_point_plan.h"

using namespace pointpeft::furthest_point_sample;

static_assert(plan_samples<float>(1024, 64, 32, {132, 16}) == Plan{Plan::held, 256, 4, 1});
static_assert(plan_samples<float>(2048, 128, 32, {132, 16}) == Plan{Plan::held, 256, 8, 1});
static_assert(plan_samples<float>(2049, 128, 32, {132, 1}) == Plan{Plan::held, 512, 8, 1}, "never 4 in a block alone");
static_assert(plan_samples<float>(8192, 512, 8, {132, 16}).blocks > 1, "idle multiprocessors take part");
static_assert(plan_samples<float>(8192, 512, 132, {132, 16}).blocks == 1, "there are none");
static_assert(plan_samples<float>(100000, 25000, 1, {132, 16}) == Plan{Plan::held, 512, 16, 16});
static_assert(plan_samples<float>(98304, 25000, 1, {132, 8}) == Plan{Plan::held, 512, 24, 8});
static_assert(plan_samples<float>(100000, 25000, 1, {132, 8}) == Plan{Plan::buckets, 512, 0, 8});
static_assert(plan_samples<float>(196608, 25000, 1, {132, 16}).way == Plan::held);
static_assert(plan_samples<float>(196609, 25000, 1, {132, 16}) == Plan{Plan::buckets, 512, 0, 16});
static_assert(plan_samples<float>(1000000, 10, 1, {132, 16}) == Plan{Plan::memory, 1024, 0, 16});
static_assert(plan_samples<float>(12288, 100, 4, {108, 1}) == Plan{Plan::held, 512, 24, 1});
static_assert(plan_samples<float>(12289, 100, 4, {108, 1}) == Plan{Plan::buckets, 512, 0, 1});
static_assert(plan_samples<float>(int64_t{1} << 31, 100, 4, {108, 1}).way == Plan::memory, "indices need 64 bits");
static_assert(plan_samples<double>(65536, 100, 1, {132, 16}) == Plan{Plan::held, 512, 8, 16});

// A team of `warps` warps, spread over `blocks` blocks.
template <class A, class Index>
struct HostTeam {
  using Candidate = Best<typename Types<A>::Bits, Index>;
  Candidate (*slots)[lanes::kMostWarps];
  int blocks, number;  // of the thread among all
  const int64_t thread, threads;

  HostTeam(Candidate (*slots)[lanes::kMostWarps], int number, int blocks)
      : slots(slots), blocks(blocks), number(number), thread(number), threads(lanes::threads) {}
  int lane() const { return number % 32; }
  int rank() const { return number / (lanes::threads / blocks); }
  int warp() const { return number % (lanes::threads / blocks) / 32 * blocks + rank(); }
  int warps() const { return lanes::threads / 32; }
  Candidate best(Candidate mine, int slot) {
    mine = warp_best(mine);
    if (lane() == 0) slots[slot][number / 32] = mine;
    __syncthreads();
    return warp_best(lane() < warps() ? slots[slot][lane()] : nobody<A, Index>());
  }
};

struct Header {
  int64_t way, is_double, warps, blocks, batch, n, num_samples;
  double min_sq_norm;
};

template <class T>
std::vector<T> read(int64_t count) {
  std::vector<T> values(count);
  if (std::fread(values.data(), sizeof(T), count, stdin) != static_cast<size_t>(count)) std::exit(2);
  return values;
}

template <class Index, class A, class Body>
void run_team(const Header& h, Body&& body) {
  for (int64_t b = 0; b < h.batch; ++b) {
    static typename HostTeam<A, Index>::Candidate slots[2][lanes::kMostWarps];
    lanes::run(
        [&](int thread) {
          HostTeam<A, Index> team(slots, thread, static_cast<int>(h.blocks));
          body(b, team);
        },
        static_cast<int>(b * 7 % 32), static_cast<int>(h.warps));
  }
}

template <class A>
void sample_sorted(const Header& h, const Task<A>& task) {
  const int64_t parts = 3;
  std::vector<int64_t> keys(h.batch * h.n), order(h.batch * h.n);
  for (int64_t b = 0; b < h.batch; ++b) {
    std::vector<Box<A>> boxes(parts);
    for (int64_t part = 0; part < parts; ++part)
      lanes::run([&](int lane) {
        const Box<A> box = bounds(task.cloud(b), part * 32 + lane, 32 * parts, task.min_sq_norm);
        if (lane == 0) boxes[part] = box;
      });
    Box<A> box = empty_box<A>();
    for (const auto& other : boxes) enclose(box, other);
    int64_t *key = keys.data() + b * h.n, *places = order.data() + b * h.n;
    for (int64_t i = 0; i < h.n; ++i) key[i] = key_of(task.cloud(b), box, i, task.min_sq_norm);
    std::iota(places, places + h.n, int64_t{0});
    std::stable_sort(places, places + h.n, [&](int64_t i, int64_t j) { return key[i] < key[j]; });
  }
  const int64_t size = bucket_size(h.n, h.warps * 32), a_cloud = (h.n + size - 1) / size, all = h.batch * a_cloud;
  std::vector<Placed<A>> points(all * size);
  std::vector<A> distances(all * size);
  std::vector<Box<A>> boxes(all);
  std::vector<Winner<A>> winners(all);
  const Buckets<A> buckets{points.data(), distances.data(), boxes.data(), winners.data(), a_cloud, size};
  for (int64_t w = 0; w < all; ++w)
    lanes::run([&](int lane) { fill_bucket(task, order.data(), buckets, w / a_cloud, w % a_cloud, lane); });
  run_team<uint32_t, A>(h, [&](int64_t b, auto& team) { sample_in_buckets(task, buckets, b, team); });
}

template <class A>
int answer(const Header& h) {
  const std::vector<A> xyz = read<A>(h.batch * h.n * 3);
  const std::vector<int64_t> lengths = read<int64_t>(h.batch), starts = read<int64_t>(h.batch);
  std::vector<int64_t> idx(h.batch * h.num_samples);
  std::vector<A> distances(h.batch * h.n);
  const Task<A> task{
      xyz.data(),       h.n * 3,          3,         1, h.n, h.num_samples, lengths.data(), starts.data(), 0,
      A(h.min_sq_norm), distances.data(), idx.data()};
  using Index = std::conditional_t<sizeof(A) == 4, uint32_t, unsigned long long>;
  if (h.way == Plan::held)
    run_team<Index, A>(h, [&](int64_t b, auto& team) { sample_held<Index, 8>(task, b, team); });
  else if (h.way == Plan::memory)
    run_team<unsigned long long, A>(
        h, [&](int64_t b, auto& team) { sample_in_memory<unsigned long long>(task, b, team); });
  else
    sample_sorted(h, task);
  return std::fwrite(idx.data(), sizeof(int64_t), idx.size(), stdout) == idx.size() ? 0 : 3;
}

int main() {
  const Header h = read<Header>(1)[0];
  if (h.way == Plan::held && h.n > h.warps * 32 * 8) return 4;
  return h.is_double ? answer<double>(h) : answer<float>(h);
}
