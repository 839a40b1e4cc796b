// The per-point parts of the Chamfer distance on the CPU, by brute force both ways, and their gradients. The lanes of a
// vector are queries, and each point of the other cloud is broadcast to all of them, so that nothing is ever reduced
// across lanes. A vector of running indices goes along with the running distances, as wide as they are, so one mask
// serves both; two vectors of queries at a time share each broadcast.
#include "common/checks.h"
#include "common/load.h"

namespace pointpeft::chamfer_distance {
namespace {

constexpr int64_t kPad = 32;  // queries are padded to whole blocks of vectors, at most 2 x 16 lanes

template <class A>
using IndexOf = std::conditional_t<sizeof(A) == 8, int64_t, int32_t>;  // as wide as A: one mask serves both

// One cloud as rows x, y, z of `stride` entries, padded with zeros.
template <class A>
struct Rows {
  Rows(A* memory, int64_t n, int64_t stride) : x(memory), y(memory + stride), z(memory + 2 * stride), length(n) {
    for (A* row : {x, y, z}) std::fill(row + n, row + stride, A(0));
  }
  A *x, *y, *z;
  int64_t length;
};

// The nearest point for U vectors of W queries from `first` on; of equal ones the lowest index, since a later one
// replaces it only when it is nearer.
template <class A, int W, int U>
POINTPEFT_INLINE void nearest_block(const Rows<A>& queries, const Rows<A>& support, int64_t first, A* sq_distance,
                                    IndexOf<A>* idx) {
  typedef A Vector __attribute__((vector_size(W * sizeof(A))));
  typedef IndexOf<A> Index __attribute__((vector_size(W * sizeof(A))));
  Vector x[U], y[U], z[U], best[U];
  Index at[U];
  for (int u = 0; u < U; ++u) {
    std::memcpy(&x[u], queries.x + first + u * W, sizeof(Vector));
    std::memcpy(&y[u], queries.y + first + u * W, sizeof(Vector));
    std::memcpy(&z[u], queries.z + first + u * W, sizeof(Vector));
    best[u] = Vector{} + std::numeric_limits<A>::infinity();
    at[u] = Index{};
  }
  for (int64_t i = 0; i < support.length; ++i) {
    const Vector sx = Vector{} + support.x[i], sy = Vector{} + support.y[i], sz = Vector{} + support.z[i];
    const Index here = Index{} + static_cast<IndexOf<A>>(i);
    for (int u = 0; u < U; ++u) {
      const Vector dx = x[u] - sx, dy = y[u] - sy, dz = z[u] - sz;
      const Vector d = dx * dx + dy * dy + dz * dz;
      const Index nearer = d < best[u];
      best[u] = nearer ? d : best[u];
      at[u] = nearer ? here : at[u];
    }
  }
  std::memcpy(sq_distance + first, best, sizeof(best));
  std::memcpy(idx + first, at, sizeof(at));
}

// Where the result of one direction goes, and room for whole blocks of it.
template <class A>
struct Found {
  A* scratch_sq_distance;
  IndexOf<A>* scratch_idx;
  A* sq_distance;
  int64_t* idx;
};

template <class A, int W>
POINTPEFT_INLINE void nearest(const Rows<A>& queries, const Rows<A>& support, int64_t begin, int64_t end,
                              const Found<A>& found) {
  int64_t first = begin;
  for (; first + W < end; first += 2 * W)
    nearest_block<A, W, 2>(queries, support, first, found.scratch_sq_distance, found.scratch_idx);
  if (first < end) nearest_block<A, W, 1>(queries, support, first, found.scratch_sq_distance, found.scratch_idx);
  for (int64_t i = begin; i < end; ++i) found.sq_distance[i] = found.scratch_sq_distance[i];
  for (int64_t i = begin; i < end; ++i) found.idx[i] = found.scratch_idx[i];
}

// Loads both clouds and searches both ways for part `part` of `parts` of the queries; false where a is not finite (1)
// or b is not (2), 0 where all is well.
template <class T, class A, int W>
POINTPEFT_INLINE int nearest_both_ways(const StridedPoints& from_a, const StridedPoints& from_b, Rows<A>& a, Rows<A>& b,
                                       int64_t part, int64_t parts, const Found<A>& found_a, const Found<A>& found_b) {
  if (!load_rows<T>(from_a, a.length, a.x, a.y, a.z)) return 1;
  if (!load_rows<T>(from_b, b.length, b.x, b.y, b.z)) return 2;
  nearest<A, W>(a, b, a.length * part / parts, a.length * (part + 1) / parts, found_a);
  nearest<A, W>(b, a, b.length * part / parts, b.length * (part + 1) / parts, found_b);
  return 0;
}

// Rounded up, with room for a block that begins at the last point.
int64_t padded(int64_t n) { return (n / kPad + 2) * kPad; }

std::tuple<Tensor, Tensor, Tensor, Tensor> chamfer_distance(const Tensor& a, const Tensor& b) {
  require_pair(a, b);
  const int64_t batch = a.size(0), n = a.size(1), m = b.size(1);
  require(n <= std::numeric_limits<int32_t>::max() && m <= std::numeric_limits<int32_t>::max(),
          "a and b must have fewer than 2^31 points, got ", n, " and ", m);
  const ScalarType wide = a.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
  Tensor sq_a = torch::stable::new_empty(a, {batch, n}, wide), sq_b = torch::stable::new_empty(a, {batch, m}, wide);
  Tensor idx_a = torch::stable::new_empty(a, {batch, n}, ScalarType::Long);
  Tensor idx_b = torch::stable::new_empty(a, {batch, m}, ScalarType::Long);
  const int64_t threads = torch::stable::get_num_threads();
  // Few clouds: each thread takes a share of the queries of each, and loads all points for itself.
  const int64_t parts = batch >= threads || n * m < 65536 ? 1 : threads;
  const int64_t grain = std::max<int64_t>(1, 65536 / std::max<int64_t>(1, n * m / parts));
  std::atomic<int> bad{0};
  dispatch_floating("a", a.scalar_type(), [&](auto type) {
    using T = decltype(type);
    using A = Accumulate<T>;
    const auto search = dispatch_level([](auto level) {
      using Level = decltype(level);
      return Level::template compiled<nearest_both_ways<T, A, kLanesOf<Level, A>>>;
    });
    const T *data_a = static_cast<const T*>(a.const_data_ptr()), *data_b = static_cast<const T*>(b.const_data_ptr());
    A *out_a = static_cast<A*>(sq_a.mutable_data_ptr()), *out_b = static_cast<A*>(sq_b.mutable_data_ptr());
    int64_t *at_a = idx_a.mutable_data_ptr<int64_t>(), *at_b = idx_b.mutable_data_ptr<int64_t>();
    torch::stable::parallel_for(0, batch * parts, grain, [&](int64_t begin, int64_t end) {
      const int64_t pad_n = padded(n), pad_m = padded(m), longest = std::max(pad_n, pad_m);
      std::unique_ptr<A[]> memory(new A[3 * pad_n + 3 * pad_m + longest]);
      std::unique_ptr<IndexOf<A>[]> index(new IndexOf<A>[longest]);
      A* scratch = memory.get() + 3 * (pad_n + pad_m);
      Rows<A> rows_a(memory.get(), n, pad_n), rows_b(memory.get() + 3 * pad_n, m, pad_m);
      for (int64_t unit = begin; unit < end; ++unit) {
        const int64_t cloud = unit / parts;
        const int wrong = search({data_a + cloud * a.stride(0), a.stride(1), a.stride(2)},
                                 {data_b + cloud * b.stride(0), b.stride(1), b.stride(2)}, rows_a, rows_b, unit % parts,
                                 parts, {scratch, index.get(), out_a + cloud * n, at_a + cloud * n},
                                 {scratch, index.get(), out_b + cloud * m, at_b + cloud * m});
        if (wrong) {
          bad = wrong;
          return;
        }
      }
    });
  });
  require(bad == 0, bad == 1 ? "a" : "b", " must be finite, got NaN or infinite coordinates");
  return {sq_a, idx_a, sq_b, idx_b};
}

template <class T>
struct Side {
  using A = Accumulate<T>;
  Side(const Tensor& grad, const Tensor& points, const Tensor& idx, const Tensor& out)
      : grad(static_cast<const A*>(grad.const_data_ptr())),
        points(static_cast<const T*>(points.const_data_ptr())),
        idx(idx.const_data_ptr<int64_t>()),
        out(static_cast<T*>(out.mutable_data_ptr())),
        length(points.size(1)),
        grad_b(grad.stride(0)),
        grad_n(grad.stride(1)),
        stride_b(points.stride(0)),
        stride_n(points.stride(1)),
        stride_c(points.stride(2)) {}
  const A* grad;
  const T* points;
  const int64_t* idx;
  T* out;
  int64_t length, grad_b, grad_n, stride_b, stride_n, stride_c;
};

// d |p - q|^2 = 2 (p - q) (dp - dq), of every pair (p, its nearest q); false for an index out of range.
template <class T>
bool add_pairs(const Side<T>& from, const Side<T>& to, int64_t cloud, double* sum_from, double* sum_to) {
  using A = Accumulate<T>;
  for (int64_t i = 0; i < from.length; ++i) {
    const int64_t j = from.idx[cloud * from.length + i];
    if (j < 0 || j >= to.length) return false;
    const A twice = 2 * from.grad[cloud * from.grad_b + i * from.grad_n];
    const T* p = from.points + cloud * from.stride_b + i * from.stride_n;
    const T* q = to.points + cloud * to.stride_b + j * to.stride_n;
    for (int c = 0; c < 3; ++c) {
      const A step = twice * (static_cast<A>(p[c * from.stride_c]) - static_cast<A>(q[c * to.stride_c]));
      sum_from[3 * i + c] += step;
      sum_to[3 * j + c] -= step;
    }
  }
  return true;
}

// Sums in the order of the points, one cloud a thread: the same bits on every run. In float64, as thousands of points
// may have the same one as their nearest.
std::tuple<Tensor, Tensor> chamfer_distance_backward(const Tensor& grad_a, const Tensor& grad_b, const Tensor& a,
                                                     const Tensor& b, const Tensor& given_idx_a,
                                                     const Tensor& given_idx_b) {
  require_pair(a, b);
  require_side("grad_a", grad_a, "idx_a", given_idx_a, a);
  require_side("grad_b", grad_b, "idx_b", given_idx_b, b);
  const int64_t batch = a.size(0), n = a.size(1), m = b.size(1);
  const Tensor idx_a = torch::stable::contiguous(given_idx_a), idx_b = torch::stable::contiguous(given_idx_b);
  Tensor out_a = torch::stable::new_empty(a, {batch, n, 3}, a.scalar_type());
  Tensor out_b = torch::stable::new_empty(b, {batch, m, 3}, b.scalar_type());
  std::atomic<bool> good{true};
  dispatch_floating("a", a.scalar_type(), [&](auto type) {
    using T = decltype(type);
    const Side<T> side_a(grad_a, a, idx_a, out_a), side_b(grad_b, b, idx_b, out_b);
    const int64_t grain = std::max<int64_t>(1, 4096 / std::max<int64_t>(1, n + m));
    torch::stable::parallel_for(0, batch, grain, [&](int64_t begin, int64_t end) {
      std::vector<double> sums(3 * (n + m));
      for (int64_t cloud = begin; cloud < end; ++cloud) {
        std::fill(sums.begin(), sums.end(), 0.0);
        double *sum_a = sums.data(), *sum_b = sum_a + 3 * n;
        if (!add_pairs(side_a, side_b, cloud, sum_a, sum_b) || !add_pairs(side_b, side_a, cloud, sum_b, sum_a)) {
          good = false;
          return;
        }
        for (int64_t i = 0; i < 3 * n; ++i) side_a.out[cloud * 3 * n + i] = static_cast<T>(sum_a[i]);
        for (int64_t i = 0; i < 3 * m; ++i) side_b.out[cloud * 3 * m + i] = static_cast<T>(sum_b[i]);
      }
    });
  });
  require(good, "idx_a and idx_b must be between 0 and M - 1 = ", m - 1, " and N - 1 = ", n - 1);
  return {out_a, out_b};
}

}  // namespace
}  // namespace pointpeft::chamfer_distance

STABLE_TORCH_LIBRARY_FRAGMENT(pointpeft, m) {
  m.def("chamfer_distance(Tensor a, Tensor b) -> (Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "chamfer_distance_backward(Tensor grad_a, Tensor grad_b, Tensor a, Tensor b, Tensor idx_a, Tensor idx_b) "
      "-> (Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(pointpeft, CPU, m) {
  m.impl("chamfer_distance", TORCH_BOX(&pointpeft::chamfer_distance::chamfer_distance));
  m.impl("chamfer_distance_backward", TORCH_BOX(&pointpeft::chamfer_distance::chamfer_distance_backward));
}
