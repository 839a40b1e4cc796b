// Farthest point sampling on the CPU, exact index for index in two ways. Small clouds: every point in every step, as
// rows x, y, z and distance that stay in the cache, one cloud a thread. Large clouds: the points lie in leaves of a k-d
// split, under a tree of boxes, and a step visits only the leaves that the new pick can change.
#include "furthest_point_tree.h"

namespace pointpeft {
namespace {

// ---- every point in every step ----

constexpr int kVectors = 4;     // of a block: one comparison of its maximum with the best so far
constexpr int64_t kBlock = 64;  // the most points of a block, what rows are padded to: 4 vectors of 16 floats
// A step ends in a chain of shuffles, and the next one waits for its pick. Two clouds in turn on one thread fill that
// wait, as long as both stay in the first-level cache: 1.4 times as fast at 128 points a cloud, 1.12 at 512, 1.06 at
// 1024, but 0.87 at 2048 (AVX2, 32 KiB; `python -m benchmarks.crossover`).
constexpr int kTogether = 2;
constexpr int64_t kTogetherBytes = 32 << 10;

template <class A>
struct Rows {
  A *x, *y, *z, *distance;
  int64_t padded;
};

template <class Bits, size_t... kLane>
POINTPEFT_INLINE void number_lanes(Bits& v, std::index_sequence<kLane...>) {
  v = Bits{kLane...};
}

// What a pass over a cloud leaves: of each lane the largest distance, and the first block that had it.
template <class A, int W>
struct Best {
  typedef BitsOf<A> Bits __attribute__((vector_size(W * sizeof(A))));
  Bits distance, block;
};

// Takes the distances to the pick into a cloud. The pick minus the point, not the other way round: the same squares,
// and x86 subtracts memory from a register in one instruction (1.11 times as fast a step at 1024 points, AVX2).
template <class A, int W>
POINTPEFT_INLINE Best<A, W> take_in(const Rows<A>& rows, int64_t pick) {
  typedef A Vector __attribute__((vector_size(W * sizeof(A))));
  using Bits = typename Best<A, W>::Bits;
  const A *px = rows.x, *py = rows.y, *pz = rows.z;
  A* distance = rows.distance;
  const int64_t padded = rows.padded;
  const A cx = px[pick], cy = py[pick], cz = pz[pick];
  Bits best = Bits{} + std::numeric_limits<BitsOf<A>>::min(), at{}, block{};
  for (int64_t base = 0; base < padded; base += kVectors * W) {
    Bits top{};
    for (int u = 0; u < kVectors; ++u) {
      const int64_t i = base + u * W;
      Vector x, y, z, old;
      std::memcpy(&x, px + i, sizeof(x));
      std::memcpy(&y, py + i, sizeof(y));
      std::memcpy(&z, pz + i, sizeof(z));
      std::memcpy(&old, distance + i, sizeof(old));
      const Vector dx = cx - x, dy = cy - y, dz = cz - z;
      const Vector d = dx * dx + dy * dy + dz * dz;
      const Vector nearest = d < old ? d : old;
      std::memcpy(distance + i, &nearest, sizeof(nearest));
      Bits bits;
      std::memcpy(&bits, &nearest, sizeof(bits));
      top = u == 0 ? bits : bits > top ? bits : top;
    }
    const Bits larger = top > best;
    best = larger ? top : best;
    at = larger ? block : at;
    block += 1;
  }
  return {best, at};
}

// The lowest index with the largest distance, looked up in the first block that has it.
template <class A, int W>
POINTPEFT_INLINE int64_t farthest(const Rows<A>& rows, const Best<A, W>& best) {
  using Bits = typename Best<A, W>::Bits;
  Bits most = best.distance, lane;
  over_lanes<W / 2, true>(most);
  const Bits none = Bits{} + std::numeric_limits<BitsOf<A>>::max();
  Bits block = best.distance == most ? best.block : none, first = none;
  over_lanes<W / 2, false>(block);
  const int64_t base = int64_t{block[0]} * (kVectors * W);
  number_lanes(lane, std::make_index_sequence<W>{});
  for (int u = 0; u < kVectors; ++u) {
    Bits bits;
    std::memcpy(&bits, rows.distance + base + u * W, sizeof(bits));
    const Bits found = bits == most ? lane : none;
    first = found < first ? found : first;
    lane += W;
  }
  over_lanes<W / 2, false>(first);
  return base + first[0];
}

template <class A>
struct Task {
  int64_t length, num_samples, start;
  A min_sq_norm;
  int64_t* idx;
};

template <class A, int W, int kClouds>
POINTPEFT_INLINE void sample_rows(const Rows<A>* clouds, const Task<A>* tasks) {
  Rows<A> rows[kClouds];
  int64_t pick[kClouds];
  for (int c = 0; c < kClouds; ++c) {
    const Task<A>& task = tasks[c];
    const Rows<A> r = rows[c] = clouds[c];
    for (int64_t i = 0; i < task.length; ++i) r.distance[i] = first_distance(r.x[i], r.y[i], r.z[i], task.min_sq_norm);
    for (A* row : {r.x, r.y, r.z}) std::fill(row + task.length, row + r.padded, A(0));
    std::fill(r.distance + task.length, r.distance + r.padded, kPadding<A>);
    pick[c] = task.start;
  }
  for (int64_t m = 0; m < tasks[0].num_samples; ++m) {
    for (int c = 0; c < kClouds; ++c) tasks[c].idx[m] = pick[c];
    if (m + 1 == tasks[0].num_samples) break;
    Best<A, W> best[kClouds];
#pragma GCC unroll 2
    for (int c = 0; c < kClouds; ++c) best[c] = take_in<A, W>(rows[c], pick[c]);
#pragma GCC unroll 2
    for (int c = 0; c < kClouds; ++c) pick[c] = farthest<A, W>(rows[c], best[c]);
  }
}

// ---- one cloud, for each vector level ----

struct Points {
  const void* data;
  int64_t stride_n, stride_c;
};

// What is compiled once for each vector level.
template <class T, class A>
struct Kernels {
  bool (*sample_small)(const Points*, const Rows<A>*, const Task<A>*, int);
  int64_t (*children_near)(const Group<A>*, const int32_t*, int64_t, const A*, int32_t*);
  void (*take_into_leaves)(Tree<A>&, const int32_t*, int64_t, const A*);
  void (*refresh)(Tree<A>&, int64_t, const int32_t*, int64_t);
};

// One or two clouds of as many samples. Whether all coordinates are finite; if not, nothing is sampled.
template <class T, class A, int W>
POINTPEFT_INLINE bool sample_small(const Points* from, const Rows<A>* rows, const Task<A>* tasks, int clouds) {
  for (int c = 0; c < clouds; ++c)
    if (!load_rows(static_cast<const T*>(from[c].data), from[c].stride_n, from[c].stride_c, tasks[c].length, rows[c].x,
                   rows[c].y, rows[c].z))
      return false;
  if (clouds == kTogether)
    sample_rows<A, W, kTogether>(rows, tasks);
  else
    sample_rows<A, W, 1>(rows, tasks);
  return true;
}

#define POINTPEFT_KERNELS(name, attribute, bytes)                                                            \
  template <class T, class A>                                                                                \
  struct name {                                                                                              \
    static constexpr int W = bytes / sizeof(A);                                                              \
    attribute static bool small(const Points* from, const Rows<A>* rows, const Task<A>* tasks, int clouds) { \
      return sample_small<T, A, W>(from, rows, tasks, clouds);                                               \
    }                                                                                                        \
    attribute static int64_t near(const Group<A>* groups, const int32_t* which, int64_t count, const A* c,   \
                                  int32_t* out) {                                                            \
      return children_near<A, W>(groups, which, count, c, out);                                              \
    }                                                                                                        \
    attribute static void take(Tree<A>& tree, const int32_t* which, int64_t count, const A* c) {             \
      take_into_leaves<A, W>(tree, which, count, c);                                                         \
    }                                                                                                        \
    attribute static void up(Tree<A>& tree, int64_t level, const int32_t* which, int64_t count) {            \
      refresh<A, W>(tree, level, which, count);                                                              \
    }                                                                                                        \
    static constexpr Kernels<T, A> kernels{small, near, take, up};                                           \
  };

POINTPEFT_KERNELS(Portable, , 16)
#if defined(__x86_64__)
POINTPEFT_KERNELS(Avx2, __attribute__((target("avx2"))), 32)
POINTPEFT_KERNELS(Avx512, __attribute__((target("avx512f,avx512vl,avx512bw,avx512dq,prefer-vector-width=512"))), 64)
#endif

template <class T, class A>
const Kernels<T, A>& kernels_for(CpuLevel level) {
#if defined(__x86_64__)
  if (level >= CpuLevel::avx512) return Avx512<T, A>::kernels;
  if (level >= CpuLevel::avx2) return Avx2<T, A>::kernels;
#endif
  return Portable<T, A>::kernels;
}

// Which way a cloud goes: rows alone, rows of two clouds together, or the tree. `automatic` is the operation, the
// others serve tests and measurements.
enum class Way { automatic, alone, together, tree };

// Where the tree is faster, float32, uniform cubes, one thread (`python -m benchmarks.crossover`). With AVX-512: from
// about 1024 samples of 2000 points, 480 of 4000 and 280 of 8000 on. With AVX2, where rows take twice as long: from
// about 520 of 2000, 300 of 4000, 320 of 8000. Of 16000 and more, at both levels, from about 320 on, which pay for
// building it.
bool tree_pays(CpuLevel level, int64_t length, int64_t num_samples) {
  return num_samples >= 320 && length * num_samples >= int64_t{1} << (level >= CpuLevel::avx512 ? 21 : 20);
}

template <class T, class A>
bool sample_large(const Kernels<T, A>& kernels, const Points& from, const Task<A>& task) {
  const T* data = static_cast<const T*>(from.data);
  const auto coordinates = [&](int64_t i, A* c) {
    for (int a = 0; a < 3; ++a) c[a] = static_cast<A>(data[i * from.stride_n + a * from.stride_c]);
  };
  std::unique_ptr<Point<A>[]> points(new Point<A>[task.length]);
  bool finite = true;
  for (int64_t i = 0; i < task.length; ++i) {
    coordinates(i, points[i].c);
    points[i].id = static_cast<BitsOf<A>>(i);
    for (const A value : points[i].c) finite &= std::isfinite(value);
  }
  if (!finite) return false;
  Tree<A> tree = build(points.get(), task.length, task.min_sq_norm);
  points.reset();
  const int64_t top = tree.levels.size() - 1;
  std::vector<std::vector<int32_t>> visited(tree.levels.size());
  for (int64_t level = 0; level <= top; ++level)
    visited[level].resize(tree.levels[level].size() * kFan + 1);  // one more: the entry that is not kept
  std::vector<int64_t> count(tree.levels.size());
  const int32_t root = 0;
  for (int64_t m = 0, pick = task.start; m < task.num_samples; ++m) {
    task.idx[m] = pick;
    if (m + 1 == task.num_samples) break;
    A c[3];
    coordinates(pick, c);
    for (int64_t level = top; level >= 0; --level)
      count[level] = kernels.children_near(tree.levels[level].data(), level == top ? &root : visited[level + 1].data(),
                                           level == top ? 1 : count[level + 1], c, visited[level].data());
    if (count[0] < kParallelLeaves)
      kernels.take_into_leaves(tree, visited[0].data(), count[0], c);
    else
      torch::stable::parallel_for(0, count[0], kParallelLeaves / 4, [&](int64_t begin, int64_t end) {
        kernels.take_into_leaves(tree, visited[0].data() + begin, end - begin, c);
      });
    for (int64_t level = 1; level <= top; ++level) kernels.refresh(tree, level, visited[level].data(), count[level]);
    const Group<A>& last = tree.levels[top][0];
    const BitsOf<A> most = *std::max_element(last.most, last.most + kFan);
    BitsOf<A> first = std::numeric_limits<BitsOf<A>>::max();
    for (int l = 0; l < kFan; ++l)
      if (last.most[l] == most) first = std::min(first, last.id[l]);
    pick = first;
  }
  return true;
}

Tensor sample(const Tensor& xyz, int64_t num_samples, const std::optional<Tensor>& lengths,
              const std::optional<Tensor>& starts, int64_t start, double min_sq_norm, Way way) {
  const int64_t batch = xyz.size(0), n = xyz.size(1);
  Tensor idx = torch::stable::new_empty(xyz, {batch, num_samples}, ScalarType::Long);
  int64_t* out = idx.mutable_data_ptr<int64_t>();
  const int64_t* length_of = lengths ? lengths->const_data_ptr<int64_t>() : nullptr;
  const int64_t* start_of = starts ? starts->const_data_ptr<int64_t>() : nullptr;
  const CpuLevel level = cpu_level();
  std::atomic<bool> finite{true};
  dispatch_floating("xyz", xyz.scalar_type(), [&](auto type) {
    using T = decltype(type);
    using A = Accumulate<T>;
    const Kernels<T, A>& kernels = kernels_for<T, A>(level);
    const T* data = static_cast<const T*>(xyz.const_data_ptr());
    const int64_t stride_b = xyz.stride(0), stride_n = xyz.stride(1), stride_c = xyz.stride(2);
    const int64_t stride = (n + kBlock - 1) / kBlock * kBlock;
    const bool fit = kTogether * 4 * stride * static_cast<int64_t>(sizeof(A)) <= kTogetherBytes;
    const int together = (way == Way::automatic ? fit : way == Way::together) ? kTogether : 1;
    torch::stable::parallel_for(0, batch, 1, [&](int64_t begin, int64_t end) {
      Aligned<A> memory;
      Points points[kTogether];
      Rows<A> rows[kTogether];
      Task<A> tasks[kTogether];
      int small = 0;  // clouds that wait for another one
      const auto sample_waiting = [&] {
        if (small > 0 && !kernels.sample_small(points, rows, tasks, small)) finite = false;
        small = 0;
      };
      for (int64_t b = begin; b < end && finite; ++b) {
        const int64_t length = length_of ? length_of[b] : n;
        const Task<A> task{length, num_samples, start_of ? start_of[b] : start, A(min_sq_norm), out + b * num_samples};
        const Points from{data + b * stride_b, stride_n, stride_c};
        if (way == Way::automatic ? tree_pays(level, length, num_samples) : way == Way::tree) {
          if (!sample_large<T, A>(kernels, from, task)) finite = false;
          continue;
        }
        if (!memory) memory = aligned_array<A>(together * 4 * stride);
        A* row = memory.get() + small * 4 * stride;
        points[small] = from;
        rows[small] = {row, row + stride, row + 2 * stride, row + 3 * stride, (length + kBlock - 1) / kBlock * kBlock};
        tasks[small] = task;
        if (++small == together) sample_waiting();
      }
      sample_waiting();
    });
  });
  require(finite, "xyz must be finite, got NaN or infinite coordinates");
  return idx;
}

Tensor sample_one_way(const Tensor& xyz, int64_t num_samples, const std::string& name) {
  require(xyz.dim() == 3 && xyz.size(2) == 3, "xyz must have shape (B, N, 3)");
  require(1 <= num_samples && num_samples <= xyz.size(1), "num_samples must be between 1 and N = ", xyz.size(1));
  require(name == "alone" || name == "together" || name == "tree", "way must be alone, together or tree, got ", name);
  const Way way = name == "alone" ? Way::alone : name == "together" ? Way::together : Way::tree;
  return sample(xyz, num_samples, std::nullopt, std::nullopt, 0, 0, way);
}

}  // namespace

Tensor furthest_point_sample(const Tensor& xyz, int64_t num_samples, const std::optional<Tensor>& lengths,
                             const std::optional<Tensor>& starts, int64_t start, double min_sq_norm) {
  return sample(xyz, num_samples, lengths, starts, start, min_sq_norm, Way::automatic);
}

}  // namespace pointpeft

STABLE_TORCH_LIBRARY_FRAGMENT(pointpeft, m) {
  m.def(
      "furthest_point_sample(Tensor xyz, int num_samples, Tensor? lengths, Tensor? starts, int start, "
      "float min_sq_norm) -> Tensor");
  m.def("_furthest_point_sample_one_way(Tensor xyz, int num_samples, str way) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(pointpeft, CPU, m) {
  m.impl("furthest_point_sample", TORCH_BOX(&pointpeft::furthest_point_sample));
  m.impl("_furthest_point_sample_one_way", TORCH_BOX(&pointpeft::sample_one_way));
}
