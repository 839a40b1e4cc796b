// Farthest point sampling on the CPU, exact index for index. A step lowers the running distance of every point to that
// to the last pick, and the next pick is the point with the largest one: a pass over rows x, y, z and distance that
// stay in the cache, with a maximum on the way. The maximum is taken over the distances' bits as integers, which
// vectorises, and remembers only the stride of 8 vectors that has it; the place is looked up afterwards in that stride
// alone.
//
// One cloud is a thread's. A step ends in a chain of shuffles that the next one waits for, so small clouds are sampled
// two at a time on one thread, each in the other's wait. Float32 with AVX-512 tries multiply-adds first, whose
// distances are off in the last bits, and samples again exactly only where a pick could be another one because of it.
// Large clouds with many samples go to a tree of boxes, of which a step visits only the leaves that its pick can change
// (furthest_point_tree.h).
#include "common/checks.h"
#include "common/load.h"
#include "common/simd.h"
#include "furthest_point_tree.h"

namespace pointpeft::furthest_point_sample {
namespace {

// ---- every point in every step ----

constexpr int kVectors = 8;    // of a stride: one comparison of its maximum with the best so far
constexpr int64_t kPad = 128;  // the most points of a stride, what clouds are padded to: 8 vectors of 16 floats
// A step ends in a chain of shuffles, and the next one waits for its pick. Two clouds in turn on one thread fill that
// wait, as long as both stay in the first-level cache: 1.5 times as fast at 128 points a cloud, 1.1 at 512, alike at
// 1024, and 0.9 at 2048 (AVX-512, 48 KiB; `python -m benchmarks.crossover`).
constexpr int kTogether = 2;
constexpr int64_t kTogetherBytes = 32 << 10;

template <class A>
struct Rows {
  A *x, *y, *z, *distance;
  int64_t padded;
};

template <class A>
struct Task {
  int64_t length, num_samples, start;
  A min_sq_norm;
  int64_t* idx;
};

template <class A, int W>
struct Lanes {
  typedef A Vector __attribute__((vector_size(W * sizeof(A))));
  typedef BitsOf<A> Bits __attribute__((vector_size(W * sizeof(A))));
};

// One bit a lane: where a vector of integers is larger than another.
#if defined(__x86_64__)
template <class Bits>
POINTPEFT_AVX512 inline uint64_t larger_lanes_avx512(const Bits& a, const Bits& b) {
  return sizeof(a[0]) == 8 ? _mm512_cmpgt_epi64_mask(__m512i(a), __m512i(b))
                           : _mm512_cmpgt_epi32_mask(__m512i(a), __m512i(b));
}

template <class Bits>
POINTPEFT_AVX2 inline uint64_t larger_lanes_avx2(const Bits& a, const Bits& b) {
  return sizeof(a[0]) == 8 ? _mm256_movemask_pd(__m256d(a > b)) : _mm256_movemask_ps(__m256(a > b));
}
#endif

template <class Bits>
POINTPEFT_INLINE uint64_t larger_lanes(const Bits& a, const Bits& b) {
#if defined(__x86_64__)
  if constexpr (sizeof(a) == 64)
    return larger_lanes_avx512(a, b);
  else if constexpr (sizeof(a) == 32)
    return larger_lanes_avx2(a, b);
  else
    return sizeof(a[0]) == 8 ? _mm_movemask_pd(__m128d(a > b)) : _mm_movemask_ps(__m128(a > b));
#else
  uint64_t lanes = 0;
  for (size_t l = 0; l < sizeof(a) / sizeof(a[0]); ++l) lanes |= uint64_t{a[l] > b[l]} << l;
  return lanes;
#endif
}

// How a step computes. Exact: every product and sum rounded, as the reference does, which gives its distances to the
// bit. Fused: multiply-adds, 8 operations a vector instead of 10, whose distances are off in the last bits: a pick
// counts when no other point comes near enough to it to be the exact one. Otherwise the cloud is sampled again,
// exactly, and so are those that the thread still has: a scan is seldom like that, a cloud on a grid always.
enum class Rounding { exact, fused };

// Three roundings each: both kinds of a distance lie within (1 + u)^3 of the true one, so within 7 u of each other, and
// a point whose fused one is 14 u smaller is not the farthest. One step of the integer that has a float's bits is
// between u and 2 u, or all of a rounding error among subnormal numbers. Where the process flushes those to zero, what
// is left out of a sum is larger, and nothing near them counts.
constexpr int kFusedSteps = 16;
template <class A>
constexpr A kLeastFused = std::numeric_limits<A>::min() * (1 << 26);

#if defined(__x86_64__)
template <class Vector>
POINTPEFT_AVX512 inline void add_square_fused(const Vector& x, Vector& sum) {
  sum = Vector(_mm512_fmadd_ps(__m512(x), __m512(x), __m512(sum)));
}
#endif

template <Rounding kRounding, class Vector>
POINTPEFT_INLINE void add_square(const Vector& x, Vector& sum) {
#if defined(__x86_64__)
  if constexpr (kRounding == Rounding::fused)
    add_square_fused(x, sum);
  else
#endif
    sum += x * x;
}

// What a pass over a cloud leaves: of each lane the largest distance, the first stride that had it, and (fused) the
// largest of the other strides.
template <class A, int W>
struct Best {
  typename Lanes<A, W>::Bits distance, stride, second;
};

// Takes the distances to the pick into a cloud. The pick minus the point, not the other way round: the same squares,
// and x86 subtracts memory from a register in one instruction (1.11 times as fast a step at 1024 points, AVX2).
template <Rounding kRounding, class A, int W>
POINTPEFT_INLINE Best<A, W> take_in(const Rows<A>& rows, int64_t pick) {
  using Vector = typename Lanes<A, W>::Vector;
  using Bits = typename Lanes<A, W>::Bits;
  const A *px = rows.x, *py = rows.y, *pz = rows.z;
  A* distance = rows.distance;
  const int64_t padded = rows.padded;
  const A cx = px[pick], cy = py[pick], cz = pz[pick];
  Bits best = Bits{} + std::numeric_limits<BitsOf<A>>::min(), second = best, at{}, stride{};
  for (int64_t base = 0; base < padded; base += kVectors * W) {
    Bits top{};
#pragma GCC unroll 8
    for (int u = 0; u < kVectors; ++u) {
      const int64_t i = base + u * W;
      Vector x, y, z, old;
      std::memcpy(&x, px + i, sizeof(x));
      std::memcpy(&y, py + i, sizeof(y));
      std::memcpy(&z, pz + i, sizeof(z));
      std::memcpy(&old, distance + i, sizeof(old));
      const Vector dx = cx - x, dy = cy - y, dz = cz - z;
      Vector d = dx * dx;
      add_square<kRounding>(dy, d);
      add_square<kRounding>(dz, d);
      const Vector nearest = d < old ? d : old;
      std::memcpy(distance + i, &nearest, sizeof(nearest));
      Bits bits;
      std::memcpy(&bits, &nearest, sizeof(bits));
      top = u == 0 ? bits : bits > top ? bits : top;
    }
    const Bits larger = top > best;
    if constexpr (kRounding == Rounding::fused) {
      const Bits smaller = larger ? best : top;
      second = smaller > second ? smaller : second;
    }
    best = larger ? top : best;
    at = larger ? stride : at;
    stride += 1;
  }
  return {best, at, second};
}

// The lowest index with the largest distance, looked up in the first stride that has it. -1 where fused distances do
// not tell which it is.
template <Rounding kRounding, class A, int W>
POINTPEFT_INLINE int64_t farthest(const Rows<A>& rows, const Best<A, W>& best) {
  using Bits = typename Lanes<A, W>::Bits;
  static_assert(kVectors * W <= 128);  // what `found` has room for
  Bits below = best.distance;
  over_lanes<W / 2, true>(below);
  const BitsOf<A> most = below[0];
  below -= kRounding == Rounding::fused ? kFusedSteps : 1;
  uint64_t lanes = larger_lanes(best.distance, below);
  bool unclear = kRounding == Rounding::fused &&
                 (most < bits_of(kLeastFused<A>) || (lanes & (lanes - 1)) || larger_lanes(best.second, below));
  int64_t stride = best.stride[__builtin_ctzll(lanes)];
  if constexpr (kRounding == Rounding::exact)
    while (lanes &= lanes - 1) stride = std::min<int64_t>(stride, best.stride[__builtin_ctzll(lanes)]);
  const int64_t first = stride * (kVectors * W);
  uint64_t found[2] = {};
#pragma GCC unroll 8
  for (int u = 0; u < kVectors; ++u) {
    Bits bits;
    std::memcpy(&bits, rows.distance + first + u * W, sizeof(bits));
    found[u * W / 64] |= larger_lanes(bits, below) << (u * W % 64);
  }
  if constexpr (kRounding == Rounding::fused)
    unclear = unclear || (found[0] & (found[0] - 1)) || (found[1] & (found[1] - 1)) || (found[0] && found[1]);
  if (unclear) return -1;
  const uint64_t late = -static_cast<uint64_t>(found[0] == 0);  // no branch: which word it is cannot be predicted
  return first + (late & 64) + __builtin_ctzll(found[0] | (found[1] & late));
}

// One or two clouds. Whether every pick was clear; exact ones are.
template <Rounding kRounding, class A, int W, int kClouds>
POINTPEFT_INLINE bool sample_rows(const Rows<A>* clouds, const Task<A>* tasks) {
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
  for (int64_t m = 0;; ++m) {
    for (int c = 0; c < kClouds; ++c) {
      if (kRounding == Rounding::fused && pick[c] < 0) return false;
      tasks[c].idx[m] = pick[c];
    }
    if (m + 1 == tasks[0].num_samples) return true;
    Best<A, W> best[kClouds];
#pragma GCC unroll 2
    for (int c = 0; c < kClouds; ++c) best[c] = take_in<kRounding, A, W>(rows[c], pick[c]);
#pragma GCC unroll 2
    for (int c = 0; c < kClouds; ++c) pick[c] = farthest<kRounding, A, W>(rows[c], best[c]);
  }
}

// ---- one cloud, for each vector level ----

// What is compiled once for each vector level.
template <class T, class A>
struct Kernels {
  bool (*sample_small)(const StridedPoints*, const Rows<A>*, const Task<A>*, int, bool&);
  int64_t (*children_near)(const Node<A>*, const int32_t*, int64_t, const A*, int32_t*);
  void (*take_into_leaves)(Tree<A>&, const int32_t*, int64_t, const A*);
  void (*refresh)(Tree<A>&, int64_t, const int32_t*, int64_t);
};

// One or two clouds of as many samples. Whether all coordinates are finite; if not, nothing is sampled. `fused`:
// whether to try it, and then whether that was clear. Float32 only: in float64 the memory takes longer than the
// arithmetic, and coordinates of 16 bits lie on a grid.
template <class T, class A, int W>
POINTPEFT_INLINE bool sample_small(const StridedPoints* from, const Rows<A>* rows, const Task<A>* tasks, int clouds,
                                   bool& fused) {
  for (int c = 0; c < clouds; ++c)
    if (!load_rows<T>(from[c], tasks[c].length, rows[c].x, rows[c].y, rows[c].z)) return false;
  if constexpr (W == 16 && std::is_same_v<T, float>) {
    if (fused)
      fused = clouds == kTogether ? sample_rows<Rounding::fused, A, W, kTogether>(rows, tasks)
                                  : sample_rows<Rounding::fused, A, W, 1>(rows, tasks);
    if (fused) return true;
  }
  if (clouds == kTogether)
    sample_rows<Rounding::exact, A, W, kTogether>(rows, tasks);
  else
    sample_rows<Rounding::exact, A, W, 1>(rows, tasks);
  return true;
}

template <class T, class A>
Kernels<T, A> kernels_in_use() {
  return dispatch_level([](auto level) {
    using Level = decltype(level);
    constexpr int W = kLanesOf<Level, A>;
    return Kernels<T, A>{Level::template compiled<sample_small<T, A, W>>, Level::template compiled<children_near<A, W>>,
                         Level::template compiled<take_into_leaves<A, W>>, Level::template compiled<refresh<A, W>>};
  });
}

// Which way a cloud goes: rows alone, rows of two clouds together, or the tree. `automatic` is the operation, the
// others serve tests and measurements.
enum class Way { automatic, alone, together, tree };

// Where the tree is faster, float32, uniform cubes, one thread (`python -m benchmarks.crossover`). With AVX-512: from
// about 700 samples of 2000 points, 400 of 4000 and 290 of 8000 on. With AVX2, where rows take twice as long: from
// about 520 of 2000, 300 of 4000, 320 of 8000. Of 16000 and more, at both levels, from about 290 to 320 on, which pay
// for building it.
bool tree_pays(CpuLevel level, int64_t length, int64_t num_samples) {
  return num_samples >= 320 && length * num_samples >= int64_t{1} << (level >= CpuLevel::avx512 ? 21 : 20);
}

template <class T, class A>
bool sample_large(const Kernels<T, A>& kernels, const StridedPoints& from, const Task<A>& task) {
  const T* data = static_cast<const T*>(from.data);
  std::unique_ptr<Point<A>[]> points(new Point<A>[task.length]);
  if (!load_points<T>(from, 3, task.length, points.get())) return false;
  Tree<A> tree = build(points.get(), task.length, task.min_sq_norm);
  points.reset();
  const std::vector<std::vector<Node<A>>>& levels = tree.boxes.levels;
  const int64_t top = levels.size() - 1;
  std::vector<std::vector<int32_t>> visited(levels.size());
  for (int64_t level = 0; level <= top; ++level)
    visited[level].resize(levels[level].size() * kFan + 1);  // one more: the entry that is not kept
  std::vector<int64_t> count(levels.size());
  const int32_t root = 0;
  for (int64_t m = 0, pick = task.start; m < task.num_samples; ++m) {
    task.idx[m] = pick;
    if (m + 1 == task.num_samples) break;
    A c[3];
    for (int a = 0; a < 3; ++a) c[a] = static_cast<A>(data[pick * from.stride_n + a * from.stride_c]);
    for (int64_t level = top; level >= 0; --level)
      count[level] = kernels.children_near(levels[level].data(), level == top ? &root : visited[level + 1].data(),
                                           level == top ? 1 : count[level + 1], c, visited[level].data());
    if (count[0] < kParallelLeaves)
      kernels.take_into_leaves(tree, visited[0].data(), count[0], c);
    else
      torch::stable::parallel_for(0, count[0], kParallelLeaves / 4, [&](int64_t begin, int64_t end) {
        kernels.take_into_leaves(tree, visited[0].data() + begin, end - begin, c);
      });
    for (int64_t level = 1; level <= top; ++level) kernels.refresh(tree, level, visited[level].data(), count[level]);
    const Node<A>& last = levels[top][0];
    const BitsOf<A> most = *std::max_element(last.most, last.most + kFan);
    BitsOf<A> first = std::numeric_limits<BitsOf<A>>::max();
    for (int l = 0; l < kFan; ++l)
      if (last.most[l] == most) first = std::min(first, last.id[l]);
    pick = first;
  }
  return true;
}

Tensor sample_by(const Tensor& xyz, int64_t num_samples, const std::optional<Tensor>& lengths,
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
    const Kernels<T, A> kernels = kernels_in_use<T, A>();
    const T* data = static_cast<const T*>(xyz.const_data_ptr());
    const int64_t stride_b = xyz.stride(0), stride_n = xyz.stride(1), stride_c = xyz.stride(2);
    const int64_t stride = (n + kPad - 1) / kPad * kPad;
    const bool fit = kTogether * 4 * stride * static_cast<int64_t>(sizeof(A)) <= kTogetherBytes;
    const int together = (way == Way::automatic ? fit : way == Way::together) ? kTogether : 1;
    torch::stable::parallel_for(0, batch, 1, [&](int64_t begin, int64_t end) {
      Aligned<A> memory;
      StridedPoints points[kTogether];
      Rows<A> rows[kTogether];
      Task<A> tasks[kTogether];
      int small = 0;      // clouds that wait for another one
      bool fused = true;  // as long as its picks are clear
      const auto sample_waiting = [&] {
        if (small > 0 && !kernels.sample_small(points, rows, tasks, small, fused)) finite = false;
        small = 0;
      };
      for (int64_t b = begin; b < end && finite; ++b) {
        const int64_t length = length_of ? length_of[b] : n;
        const Task<A> task{length, num_samples, start_of ? start_of[b] : start, A(min_sq_norm), out + b * num_samples};
        const StridedPoints from{data + b * stride_b, stride_n, stride_c};
        if (way == Way::automatic ? tree_pays(level, length, num_samples) : way == Way::tree) {
          if (!sample_large<T, A>(kernels, from, task)) finite = false;
          continue;
        }
        if (!memory) memory = aligned_array<A>(together * 4 * stride);
        points[small] = from;
        A* row = memory.get() + small * 4 * stride;
        rows[small] = {row, row + stride, row + 2 * stride, row + 3 * stride, (length + kPad - 1) / kPad * kPad};
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
  checked_sampling(xyz, "num_samples", num_samples, std::nullopt, std::nullopt, 0, 0);
  require(name == "alone" || name == "together" || name == "tree", "way must be alone, together or tree, got ", name);
  const Way way = name == "alone" ? Way::alone : name == "together" ? Way::together : Way::tree;
  return sample_by(xyz, num_samples, std::nullopt, std::nullopt, 0, 0, way);
}

}  // namespace

Tensor sample(const Tensor& xyz, int64_t num_samples, const std::optional<Tensor>& lengths,
              const std::optional<Tensor>& starts, int64_t start, double min_sq_norm) {
  const Sampling checked = checked_sampling(xyz, "num_samples", num_samples, lengths, starts, start, min_sq_norm);
  return sample_by(xyz, num_samples, checked.lengths, checked.starts, start, min_sq_norm, Way::automatic);
}

}  // namespace pointpeft::furthest_point_sample

STABLE_TORCH_LIBRARY_FRAGMENT(pointpeft, m) {
  m.def(
      "furthest_point_sample(Tensor xyz, int num_samples, Tensor? lengths, Tensor? starts, int start, "
      "float min_sq_norm) -> Tensor");
  m.def("_furthest_point_sample_one_way(Tensor xyz, int num_samples, str way) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(pointpeft, CPU, m) {
  m.impl("furthest_point_sample", TORCH_BOX(&pointpeft::furthest_point_sample::sample));
  m.impl("_furthest_point_sample_one_way", TORCH_BOX(&pointpeft::furthest_point_sample::sample_one_way));
}
