// Nearest neighbours on the CPU, in three ways that give the same answer. Small clouds: all distances of a query, a
// bound on the k-th smallest, and the few that it lets pass (knn_rows.h). Large ones: a tree of boxes, of which a query
// visits a few leaves (knn_tree.h). Many channels: distances from a matrix product, |q|² + |s|² - 2 q·s, whose rounding
// decides among those that are nearly equal.
#include "common/checks.h"
#include "knn_rows.h"
#include "knn_tree.h"

namespace pointpeft::knn {
namespace {

// The three ways; `automatic` is the operation, the others serve tests and measurements.
enum class Way { automatic, rows, tree, product };

// Above it the distances come from a matrix product, which cancels digits. With up to 16 channels the exact ones are
// also faster: 1.5 and 1.6 ms at C = 16 for 32 clouds of 128 points, 2.6 and 3.1 for 512 queries in 4 clouds of 1024
// (AVX2). `python -m benchmarks.crossover` measures this and what follows again.
constexpr int64_t kMostExactChannels = 16;
// From here on a tree is faster than all distances. Uniform points, k = 16, AVX-512, ms of one thread, rows and tree:
//   256 queries in 2048 points 0.18 and 0.17, in 4096 0.36 and 0.22, in 65536 6.9 and 3.7;
//   128 queries in 4096 points 0.23 and 0.16, in 65536 2.9 and 3.6;  1024 in 4096 1.6 and 1.0 (k = 128: 3.8 and 3.4).
constexpr int64_t kLeastTreePoints = 4096;
constexpr int64_t kLeastTreeQueries = 256;

struct Problem {
  const Tensor &query, &support;
  int64_t batch, m, n, channels, k;
  const int64_t* lengths;
  void* sq_distance;  // null where it is not wanted
  int64_t* idx;
  void* patches;  // support[idx] - query in the dtype of support, null where it is not wanted
  int64_t padded() const {
    const int64_t columns = columns_for(k);
    return (n + columns - 1) / columns * columns;
  }
};

// Answers queries begin..end of cloud b.
template <class T, class A>
bool answer(const Problem& p, int64_t b, int64_t begin, int64_t end, const Rows<A>& rows, Scratch<A>& scratch,
            Search<A> search) {
  const T* query = static_cast<const T*>(p.query.const_data_ptr()) + b * p.query.stride(0);
  const int64_t stride_m = p.query.stride(1), stride_c = p.query.stride(2);
  A q[kMostExactChannels];
  bool finite = true;
  for (int64_t m = begin; m < end; ++m) {
    for (int64_t c = 0; c < p.channels; ++c) {
      q[c] = static_cast<A>(query[m * stride_m + c * stride_c]);
      finite &= std::isfinite(q[c]);
    }
    if (!finite) return false;
    const int64_t at = (b * p.m + m) * p.k;
    search(rows, q, p.k, scratch, {p.sq_distance ? static_cast<A*>(p.sq_distance) + at : nullptr, p.idx + at});
    if (!p.patches) continue;
    T* patch = static_cast<T*>(p.patches) + at * p.channels;
    for (int64_t j = 0; j < p.k; ++j)
      for (int64_t c = 0; c < p.channels; ++c)
        patch[j * p.channels + c] = static_cast<T>(rows.data[c * rows.stride + p.idx[at + j]] - q[c]);
  }
  return true;
}

template <class T>
void nearest_by_rows(const Problem& p) {
  using A = Accumulate<T>;
  const Search<A> search = search_in_use<A>();
  const T* support = static_cast<const T*>(p.support.const_data_ptr());
  const int64_t stride_b = p.support.stride(0), stride_n = p.support.stride(1), stride_c = p.support.stride(2);
  const int64_t padded = p.padded();
  std::atomic<bool> support_finite{true}, query_finite{true};
  const auto load = [&](int64_t b, A* data) {
    const int64_t length = p.lengths ? p.lengths[b] : p.n, columns = columns_for(p.k);
    const Rows<A> rows{data, p.channels, length, (length + columns - 1) / columns * columns};
    const StridedPoints from{support + b * stride_b, stride_n, stride_c};
    if (!load_padded_rows<T>(from, p.channels, length, rows.stride, data)) support_finite = false;
    return rows;
  };
  if (p.batch >= static_cast<int64_t>(torch::stable::get_num_threads())) {
    torch::stable::parallel_for(0, p.batch, 1, [&](int64_t begin, int64_t end) {
      const Aligned<A> data = aligned_array<A>(p.channels * padded);
      Scratch<A> scratch(padded);
      for (int64_t b = begin; b < end && support_finite; ++b) {
        const Rows<A> rows = load(b, data.get());
        if (support_finite && !answer<T, A>(p, b, 0, p.m, rows, scratch, search)) query_finite = false;
      }
    });
  } else {
    const Aligned<A> data = aligned_array<A>(p.channels * padded);
    for (int64_t b = 0; b < p.batch && support_finite; ++b) {
      const Rows<A> rows = load(b, data.get());
      if (!support_finite) break;
      torch::stable::parallel_for(0, p.m, 16, [&](int64_t begin, int64_t end) {
        Scratch<A> scratch(padded);
        if (!answer<T, A>(p, b, begin, end, rows, scratch, search)) query_finite = false;
      });
    }
  }
  require(support_finite, "support must be finite, got NaN or infinite values");
  require(query_finite, "query must be finite, got NaN or infinite values");
}

Way fastest_way(const Problem& p) {
  if (p.channels <= 3 && p.n >= kLeastTreePoints && p.m >= kLeastTreeQueries) return Way::tree;
  return p.channels <= kMostExactChannels ? Way::rows : Way::product;
}

// Has the memory of `count` values, which are written soon, brought near: its first lines, as the processor fetches the
// rest of a long row by itself.
template <class V>
void prefetch(const V* values, int64_t count) {
  constexpr int64_t kMostBytes = 512, kLine = 64;
  const char* from = reinterpret_cast<const char*>(values);
  const int64_t bytes = std::min<int64_t>(count * sizeof(V), kMostBytes);
  for (int64_t at = 0; at < bytes; at += kLine) __builtin_prefetch(from + at, 1);
}

// Cloud b by a tree. The queries are taken in the order of a k-d split of their own, so that those that follow each
// other visit the same leaves.
template <class T>
void nearest_by_tree(const Problem& p, int64_t b, int64_t n) {
  using A = Accumulate<T>;
  const TreeSearch<A> search = tree_search_in_use<A>();
  const T* support = static_cast<const T*>(p.support.const_data_ptr()) + b * p.support.stride(0);
  const T* query = static_cast<const T*>(p.query.const_data_ptr()) + b * p.query.stride(0);
  const int64_t stride_n = p.support.stride(1), stride_c = p.support.stride(2);
  std::unique_ptr<Point<A>[]> points(new Point<A>[n]), queries(new Point<A>[p.m]);
  require(load_points<T>({support, stride_n, stride_c}, p.channels, n, points.get()),
          "support must be finite, got NaN or infinite values");
  require(load_points<T>({query, p.query.stride(1), p.query.stride(2)}, p.channels, p.m, queries.get()),
          "query must be finite, got NaN or infinite values");
  const Tree<A> tree = build_tree(points.get(), n);
  points.reset();
  split_into_leaves(queries.get(), p.m, kLeaf);
  torch::stable::parallel_for(0, p.m, 64, [&](int64_t begin, int64_t end) {
    Candidates<A> candidates(p.k);
    for (int64_t i = begin; i < end; ++i) {
      const Point<A>& q = queries[i];
      const int64_t at = (b * p.m + q.id) * p.k;
      prefetch(p.idx + at, p.k);  // neighbours in space are far from each other in memory
      if (p.sq_distance) prefetch(static_cast<A*>(p.sq_distance) + at, p.k);
      search(tree, q.c, p.k, candidates, p.sq_distance ? static_cast<A*>(p.sq_distance) + at : nullptr, p.idx + at);
      if (!p.patches) continue;
      T* patch = static_cast<T*>(p.patches) + at * p.channels;
      for (int64_t j = 0; j < p.k; ++j)
        for (int64_t c = 0; c < p.channels; ++c)
          patch[j * p.channels + c] =
              static_cast<T>(static_cast<A>(support[p.idx[at + j] * stride_n + c * stride_c]) - q.c[c]);
    }
  });
}

// Squared norms of the points of a contiguous (B, N, C) tensor, the first of each cloud where there are lengths;
// returns whether all their values are finite. Padding may hold anything.
template <class A>
bool squared_norms(const Tensor& points, const int64_t* lengths, A* norms) {
  const int64_t n = points.size(1), count = points.size(0) * n, channels = points.size(2);
  const A* data = static_cast<const A*>(points.const_data_ptr());
  std::atomic<bool> finite{true};
  torch::stable::parallel_for(0, count, 256, [&](int64_t begin, int64_t end) {
    bool good = true;
    for (int64_t i = begin; i < end; ++i) {
      if (lengths && i % n >= lengths[i / n]) continue;
      A sum = 0;
      for (int64_t c = 0; c < channels; ++c) {
        const A value = data[i * channels + c];
        good &= std::abs(value) <= std::numeric_limits<A>::max();
        sum += value * value;
      }
      norms[i] = sum;
    }
    if (!good) finite = false;
  });
  return finite;
}

// out = a @ b by batches. The form with `out` stays in its dtype under autocast. Not for CUDA, where a switch of
// PyTorch has it round the factors to TF32.
void batch_product(const Tensor& a, const Tensor& b, Tensor& out) {
  std::array<StableIValue, 3> stack{torch::stable::detail::from(a), torch::stable::detail::from(b),
                                    torch::stable::detail::from(out)};
  TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::bmm", "out", stack.data(), TORCH_ABI_VERSION));
  out = torch::stable::detail::to<Tensor>(stack[0]);
}

// Many channels: |q|² + |s|² - 2 q·s, clamped at 0, with the products by the BLAS, some queries of all clouds at a
// time.
template <class A>
void nearest_by_product(const Problem& p) {
  const ScalarType dtype = std::is_same_v<A, double> ? ScalarType::Double : ScalarType::Float;
  const Tensor query = torch::stable::contiguous(torch::stable::to(p.query, dtype));
  const Tensor support = torch::stable::contiguous(torch::stable::to(p.support, dtype));
  std::unique_ptr<A[]> query_norm(new A[p.batch * p.m]), support_norm(new A[p.batch * p.n]);
  require(squared_norms(support, p.lengths, support_norm.get()), "support must be finite, got NaN or infinite values");
  require(squared_norms<A>(query, nullptr, query_norm.get()), "query must be finite, got NaN or infinite values");
  const Search<A> search = search_in_use<A>();
  const int64_t chunk = queries_a_product(p.batch, p.m, p.n), padded = p.padded();
  const Tensor transposed = torch::stable::transpose(support, 1, 2);
  for (int64_t first = 0; first < p.m; first += chunk) {
    const int64_t some = std::min(chunk, p.m - first);
    Tensor product = torch::stable::new_empty(support, {p.batch, some, p.n}, dtype);
    batch_product(torch::stable::narrow(const_cast<Tensor&>(query), 1, first, some), transposed, product);
    const A* dots = static_cast<const A*>(product.const_data_ptr());
    torch::stable::parallel_for(0, p.batch * some, 1, [&](int64_t begin, int64_t end) {
      Scratch<A> scratch(padded);
      for (int64_t i = begin; i < end; ++i) {
        const int64_t b = i / some, m = first + i % some, length = p.lengths ? p.lengths[b] : p.n;
        const A* __restrict dot = dots + i * p.n, * __restrict norm = support_norm.get() + b * p.n;
        A* __restrict distance = scratch.distance;
        const A own = query_norm[b * p.m + m];
        for (int64_t j = 0; j < length; ++j) {
          const A d = (own + norm[j]) - 2 * dot[j];
          distance[j] = d > 0 ? d : 0;
        }
        std::fill(distance + length, distance + padded, std::numeric_limits<A>::quiet_NaN());
        const int64_t at = (b * p.m + m) * p.k;
        search({nullptr, p.channels, length, padded}, nullptr, p.k, scratch,
               {static_cast<A*>(p.sq_distance) + at, p.idx + at});
      }
    });
  }
}

void nearest_by(const Tensor& query, const Tensor& support, int64_t k, const std::optional<Tensor>& lengths,
                Tensor* sq_distance, Tensor& idx, Tensor* patches, Way way) {
  Problem p{query,
            support,
            query.size(0),
            query.size(1),
            support.size(1),
            query.size(2),
            k,
            lengths ? lengths->const_data_ptr<int64_t>() : nullptr,
            sq_distance ? sq_distance->mutable_data_ptr() : nullptr,
            idx.mutable_data_ptr<int64_t>(),
            patches ? patches->mutable_data_ptr() : nullptr};
  require(p.n < std::numeric_limits<int32_t>::max() - kMostColumns, "support must have fewer than 2^31 points, got ",
          p.n);
  if (p.batch == 0 || p.m == 0) return;
  if (way == Way::automatic) way = fastest_way(p);
  dispatch_floating("support", support.scalar_type(), [&](auto type) {
    using T = decltype(type);
    if (way == Way::tree)
      for (int64_t b = 0; b < p.batch; ++b) nearest_by_tree<T>(p, b, p.lengths ? p.lengths[b] : p.n);
    else if (way == Way::rows)
      nearest_by_rows<T>(p);
    else
      nearest_by_product<Accumulate<T>>(p);
  });
}

std::tuple<Tensor, Tensor> search(const Tensor& query, const Tensor& support, int64_t k,
                                  const std::optional<Tensor>& lengths, Way way) {
  const ScalarType dtype = support.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
  Tensor sq_distance = torch::stable::new_empty(support, {query.size(0), query.size(1), k}, dtype);
  Tensor idx = torch::stable::new_empty(support, {query.size(0), query.size(1), k}, ScalarType::Long);
  nearest_by(query, support, k, lengths, &sq_distance, idx, nullptr, way);
  return {sq_distance, idx};
}

std::tuple<Tensor, Tensor> knn(const Tensor& query, const Tensor& support, int64_t k,
                               const std::optional<Tensor>& lengths) {
  require_search(query, support, -1, k);
  return search(query, support, k, checked_lengths(lengths, "support", support, "k", k), Way::automatic);
}

std::tuple<Tensor, Tensor> knn_one_way(const Tensor& query, const Tensor& support, int64_t k, const std::string& name) {
  require_search(query, support, -1, k);
  require(name == "rows" || name == "tree" || name == "product", "way must be rows, tree or product, got ", name);
  const Way way = name == "rows" ? Way::rows : name == "tree" ? Way::tree : Way::product;
  const int64_t most = way == Way::rows ? kMostExactChannels : 3;
  require(way == Way::product || query.size(2) <= most, "way ", name, " takes at most ", most, " channels");
  return search(query, support, k, std::nullopt, way);
}

}  // namespace

void nearest(const Tensor& query, const Tensor& support, int64_t k, const std::optional<Tensor>& lengths,
             Tensor* sq_distance, Tensor& idx, Tensor* patches) {
  nearest_by(query, support, k, lengths, sq_distance, idx, patches, Way::automatic);
}

}  // namespace pointpeft::knn

STABLE_TORCH_LIBRARY_FRAGMENT(pointpeft, m) {
  m.def("knn(Tensor query, Tensor support, int k, Tensor? lengths) -> (Tensor, Tensor)");
  m.def("_knn_one_way(Tensor query, Tensor support, int k, str way) -> (Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(pointpeft, CPU, m) {
  m.impl("knn", TORCH_BOX(&pointpeft::knn::knn));
  m.impl("_knn_one_way", TORCH_BOX(&pointpeft::knn::knn_one_way));
}
