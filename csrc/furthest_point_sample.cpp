// Farthest point sampling on the CPU, exact index for index in two ways. Small clouds: every point in every step, as
// rows x, y, z and distance that stay in the cache, one cloud a thread. Large clouds: the points lie in leaves of a k-d
// split, under a tree of boxes, and a step visits only the leaves that the new pick can change.
#include "pointpeft.h"

namespace pointpeft {
namespace {

template <class A>
using BitsOf = std::conditional_t<sizeof(A) == 8, int64_t, int32_t>;

// Distances are compared by their bits as integers, since maxima of integers are associative and so vectorise. That
// orders what is not negative as usual, and these two below it: points that are never picked, and padding.
template <class A>
constexpr A kNever = A(-1);
template <class A>
constexpr A kPadding = A(-0.5);
static_assert(sizeof(float) == sizeof(int32_t) && sizeof(double) == sizeof(int64_t));

template <class A>
POINTPEFT_INLINE BitsOf<A> bits_of(A value) {
  BitsOf<A> bits;
  std::memcpy(&bits, &value, sizeof(A));
  return bits;
}

template <class A>
POINTPEFT_INLINE A first_distance(A x, A y, A z, A min_sq_norm) {
  return min_sq_norm > 0 && x * x + y * y + z * z <= min_sq_norm ? kNever<A> : std::numeric_limits<A>::infinity();
}

// ---- every point in every step ----

constexpr int kVectors = 4;     // of a block: one comparison of its maximum with the best so far
constexpr int64_t kBlock = 64;  // the most points of a block, what rows are padded to: 4 vectors of 16 floats

template <class A>
struct Rows {
  A *x, *y, *z, *distance;
  int64_t padded;
};

template <int kSwap, class Bits, size_t... kLane>
POINTPEFT_INLINE void swap_lanes(const Bits& v, Bits& out, std::index_sequence<kLane...>) {
  out = __builtin_shufflevector(v, v, (static_cast<int>(kLane) ^ kSwap)...);
}

// The maximum (or minimum) over all lanes, in all lanes.
template <int kSwap, bool kMaximum, class Bits>
POINTPEFT_INLINE void over_lanes(Bits& v) {
  if constexpr (kSwap > 0) {
    Bits other;
    swap_lanes<kSwap>(v, other, std::make_index_sequence<sizeof(v) / sizeof(v[0])>{});
    v = (kMaximum ? other > v : other < v) ? other : v;
    over_lanes<kSwap / 2, kMaximum>(v);
  }
}

template <class Bits, size_t... kLane>
POINTPEFT_INLINE void number_lanes(Bits& v, std::index_sequence<kLane...>) {
  v = Bits{kLane...};
}

// One step: the distances to the pick are taken in, and the farthest point is found. Each lane keeps its best and the
// first block that had it; the lowest index is looked up at the end, in one block.
template <class A, int W>
POINTPEFT_INLINE int64_t take_in(const Rows<A>& rows, int64_t pick) {
  typedef A Vector __attribute__((vector_size(W * sizeof(A))));
  typedef BitsOf<A> Bits __attribute__((vector_size(W * sizeof(A))));
  const A *px = rows.x, *py = rows.y, *pz = rows.z;
  A* distance = rows.distance;
  const int64_t padded = rows.padded;
  const Vector cx = Vector{} + px[pick], cy = Vector{} + py[pick], cz = Vector{} + pz[pick];
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
      const Vector dx = x - cx, dy = y - cy, dz = z - cz;
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
  Bits most = best, lane;
  over_lanes<W / 2, true>(most);
  const Bits none = Bits{} + std::numeric_limits<BitsOf<A>>::max();
  Bits block_of_most = best == most ? at : none, first = none;
  over_lanes<W / 2, false>(block_of_most);
  const int64_t base = int64_t{block_of_most[0]} * (kVectors * W);
  number_lanes(lane, std::make_index_sequence<W>{});
  for (int u = 0; u < kVectors; ++u) {
    Bits bits;
    std::memcpy(&bits, distance + base + u * W, sizeof(bits));
    const Bits found = bits == most ? lane : none;
    first = found < first ? found : first;
    lane += W;
  }
  over_lanes<W / 2, false>(first);
  return base + first[0];
}

template <class A, int W>
POINTPEFT_INLINE void sample_rows(const Rows<A>& rows, int64_t length, int64_t num_samples, int64_t start,
                                  A min_sq_norm, int64_t* idx) {
  for (int64_t i = 0; i < length; ++i) rows.distance[i] = first_distance(rows.x[i], rows.y[i], rows.z[i], min_sq_norm);
  for (A* row : {rows.x, rows.y, rows.z}) std::fill(row + length, row + rows.padded, A(0));
  std::fill(rows.distance + length, rows.distance + rows.padded, kPadding<A>);
  for (int64_t m = 0, pick = start; m < num_samples; ++m) {
    idx[m] = pick;
    if (m + 1 < num_samples) pick = take_in<A, W>(rows, pick);
  }
}

// ---- one cloud, for each vector level ----

struct Points {
  const void* data;
  int64_t stride_n, stride_c;
};

template <class A>
struct Task {
  int64_t length, num_samples, start;
  A min_sq_norm;
  int64_t* idx;
};

// Whether all coordinates are finite; if not, nothing is sampled.
template <class T, class A, int W>
POINTPEFT_INLINE bool sample_small(const Points& from, const Rows<A>& rows, const Task<A>& task) {
  if (!load_rows(static_cast<const T*>(from.data), from.stride_n, from.stride_c, task.length, rows.x, rows.y, rows.z))
    return false;
  sample_rows<A, W>(rows, task.length, task.num_samples, task.start, task.min_sq_norm, task.idx);
  return true;
}

#if defined(__x86_64__)
#define POINTPEFT_AVX512 __attribute__((target("avx512f,avx512vl,avx512bw,avx512dq,prefer-vector-width=512")))
#define POINTPEFT_AVX2 __attribute__((target("avx2")))
template <class T, class A>
POINTPEFT_AVX512 bool small_avx512(const Points& from, const Rows<A>& rows, const Task<A>& task) {
  return sample_small<T, A, 64 / sizeof(A)>(from, rows, task);
}

template <class T, class A>
POINTPEFT_AVX2 bool small_avx2(const Points& from, const Rows<A>& rows, const Task<A>& task) {
  return sample_small<T, A, 32 / sizeof(A)>(from, rows, task);
}
#endif

template <class T, class A>
bool small_portable(const Points& from, const Rows<A>& rows, const Task<A>& task) {
  return sample_small<T, A, 16 / sizeof(A)>(from, rows, task);
}

}  // namespace

Tensor furthest_point_sample(const Tensor& xyz, int64_t num_samples, const std::optional<Tensor>& lengths,
                             const std::optional<Tensor>& starts, int64_t start, double min_sq_norm) {
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
    auto* sample = small_portable<T, A>;
#if defined(__x86_64__)
    if (level == CpuLevel::avx512) sample = small_avx512<T, A>;
    if (level == CpuLevel::avx2) sample = small_avx2<T, A>;
#endif
    const T* data = static_cast<const T*>(xyz.const_data_ptr());
    const int64_t stride_b = xyz.stride(0), stride_n = xyz.stride(1), stride_c = xyz.stride(2);
    torch::stable::parallel_for(0, batch, 1, [&](int64_t begin, int64_t end) {
      const int64_t stride = (n + kBlock - 1) / kBlock * kBlock;
      std::unique_ptr<A[]> memory(new A[4 * stride]);
      for (int64_t b = begin; b < end; ++b) {
        const int64_t length = length_of ? length_of[b] : n;
        const Rows<A> rows{memory.get(), memory.get() + stride, memory.get() + 2 * stride, memory.get() + 3 * stride,
                           (length + kBlock - 1) / kBlock * kBlock};
        const Task<A> task{length, num_samples, start_of ? start_of[b] : start, A(min_sq_norm), out + b * num_samples};
        if (!sample({data + b * stride_b, stride_n, stride_c}, rows, task)) {
          finite = false;
          return;
        }
      }
    });
  });
  require(finite, "xyz must be finite, got NaN or infinite coordinates");
  return idx;
}

}  // namespace pointpeft

STABLE_TORCH_LIBRARY_FRAGMENT(pointpeft, m) {
  m.def(
      "furthest_point_sample(Tensor xyz, int num_samples, Tensor? lengths, Tensor? starts, int start, "
      "float min_sq_norm) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(pointpeft, CPU, m) {
  m.impl("furthest_point_sample", TORCH_BOX(&pointpeft::furthest_point_sample));
}
