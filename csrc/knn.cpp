// Nearest neighbours on the CPU. Small clouds: for each query the squared distances to the cloud's rows x, y, z, a
// bound on the k-th smallest from column minima, the few survivors below it, and their order. Large clouds: a tree, see
// there.
#include "knn_tree.h"

namespace pointpeft {
namespace {

constexpr int64_t kMostExactChannels = 16;  // above it the distances come from a matrix product
constexpr int64_t kMostColumns = 256;       // of the column minima, which serve k up to half as many
// From here on a tree is faster than all distances. Uniform points, k = 16, AVX-512, ms of one thread, rows and tree:
//   256 queries in 2048 points 0.18 and 0.17, in 4096 0.36 and 0.22, in 65536 6.9 and 3.7;
//   128 queries in 4096 points 0.23 and 0.16, in 65536 2.9 and 3.6;  1024 in 4096 1.6 and 1.0 (k = 128: 3.8 and 3.4).
constexpr int64_t kLeastTreePoints = 4096;
constexpr int64_t kLeastTreeQueries = 256;
constexpr int64_t kPad = 16;  // survivors are written in whole vectors

// One cloud as rows of channels, padded with NaN to whole columns: a NaN distance is below no bound.
template <class A>
struct Rows {
  const A* data;
  int64_t channels, length, stride;
};

// Where a query's result goes; what is null is not wanted.
template <class A>
struct Out {
  A* sq_distance;
  int64_t* idx;
};

template <class A>
struct Scratch {
  explicit Scratch(int64_t n)
      : memory(aligned_array<A>(2 * n + kPad)),
        ints(aligned_array<int32_t>(3 * n + 2 * kPad)),
        distance(memory.get()),
        kept(distance + n),
        id(ints.get()),
        rank(id + n + kPad),
        seen(rank + n + kPad) {}
  Aligned<A> memory;
  Aligned<int32_t> ints;
  A *distance, *kept;         // of all points; of the survivors
  int32_t *id, *rank, *seen;  // of the survivors
};

int64_t columns_for(int64_t k) {
  int64_t columns = 16;
  while (columns < 2 * k && columns < kMostColumns) columns *= 2;
  return columns;
}

// --- the four steps, written so that the compiler vectorises them for the level of the caller ---

template <int G, class A>
POINTPEFT_INLINE void distances_3(const Rows<A>& rows, const A* q, A* __restrict distance, A* __restrict minima) {
  const A* __restrict x = rows.data, * __restrict y = x + rows.stride, * __restrict z = y + rows.stride;
  const A qx = q[0], qy = q[1], qz = q[2];
  for (int64_t base = 0; base < rows.stride; base += G)
    for (int64_t c = 0; c < G; ++c) {
      const A dx = qx - x[base + c], dy = qy - y[base + c], dz = qz - z[base + c];
      const A d = dx * dx + dy * dy + dz * dz;
      distance[base + c] = d;
      minima[c] = d < minima[c] ? d : minima[c];
    }
}

template <class A>
POINTPEFT_INLINE void distances_any(const Rows<A>& rows, const A* q, A* __restrict distance) {
  for (int64_t c = 0; c < rows.channels; ++c) {
    const A* __restrict row = rows.data + c * rows.stride;
    const A qc = q[c];
    if (c == 0)
      for (int64_t i = 0; i < rows.stride; ++i) distance[i] = (qc - row[i]) * (qc - row[i]);
    else
      for (int64_t i = 0; i < rows.stride; ++i) distance[i] += (qc - row[i]) * (qc - row[i]);
  }
}

template <int G, class A>
POINTPEFT_INLINE void column_minima(const A* __restrict distance, int64_t n, A* __restrict minima) {
  for (int64_t base = 0; base < n; base += G)
    for (int64_t c = 0; c < G; ++c) {
      const A d = distance[base + c];
      minima[c] = d < minima[c] ? d : minima[c];
    }
}

// A value that at least k of the minima, so at least k distances, do not exceed. Bisection: any upper bound serves, a
// tight one leaves fewer survivors.
template <int G, class A>
POINTPEFT_INLINE A bound_of(const A* __restrict minima, int64_t k) {
  A low = minima[0], high = minima[0];
  for (int c = 0; c < G; ++c) {
    low = minima[c] < low ? minima[c] : low;
    high = minima[c] > high ? minima[c] : high;
  }
  for (int step = 0; step < 10 && low < high; ++step) {
    const A middle = low + (high - low) / 2;
    int32_t count = 0;
    for (int c = 0; c < G; ++c) count += minima[c] <= middle;
    if (count >= k) {
      high = middle;
      if (count <= k + k / 8) break;
    } else {
      low = middle;
    }
  }
  return high;
}

template <class A>
int64_t keep_portable(const A* distance, int64_t n, A bound, A* kept, int32_t* id) {
  int64_t count = 0;
  for (int64_t i = 0; i < n; ++i) {
    kept[count] = distance[i];
    id[count] = static_cast<int32_t>(i);
    count += distance[i] <= bound;
  }
  return count;
}

template <class A>
void rank_portable(const A* kept, int64_t count, int32_t* rank) {
  for (int64_t i = 0; i < count; ++i) {
    int32_t below = 0;
    for (int64_t j = 0; j < count; ++j) below += kept[j] < kept[i];
    rank[i] = below;
  }
}

#if defined(__x86_64__)
POINTPEFT_AVX2 int64_t keep_avx2(const float* distance, int64_t n, float bound, float* kept, int32_t* id) {
  const __m256 limit = _mm256_set1_ps(bound);
  int64_t count = 0;
  for (int64_t i = 0; i < n; i += 8) {  // n is a multiple of 16
    unsigned mask = _mm256_movemask_ps(_mm256_cmp_ps(_mm256_loadu_ps(distance + i), limit, _CMP_LE_OQ));
    for (; mask; mask &= mask - 1) {
      const int64_t j = i + __builtin_ctz(mask);
      kept[count] = distance[j];
      id[count++] = static_cast<int32_t>(j);
    }
  }
  return count;
}

POINTPEFT_AVX2 void rank_avx2(const float* kept, int64_t count, int32_t* rank) {
  for (int64_t i = 0; i < count; i += 8) {
    const __m256 value = _mm256_loadu_ps(kept + i);
    __m256i below = _mm256_setzero_si256();
    for (int64_t j = 0; j < count; ++j)
      below = _mm256_sub_epi32(below, _mm256_castps_si256(_mm256_cmp_ps(_mm256_set1_ps(kept[j]), value, _CMP_LT_OQ)));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(rank + i), below);
  }
}

POINTPEFT_AVX512 int64_t keep_avx512(const float* distance, int64_t n, float bound, float* kept, int32_t* id) {
  const __m512 limit = _mm512_set1_ps(bound);
  const __m512i step = _mm512_set1_epi32(16);
  __m512i index = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  int64_t count = 0;
  for (int64_t i = 0; i < n; i += 16) {
    const __m512 d = _mm512_loadu_ps(distance + i);
    const __mmask16 mask = _mm512_cmp_ps_mask(d, limit, _CMP_LE_OQ);
    // Compressed in a register, then stored whole: compressing straight to memory is microcode on AMD.
    _mm512_storeu_ps(kept + count, _mm512_maskz_compress_ps(mask, d));
    _mm512_storeu_si512(id + count, _mm512_maskz_compress_epi32(mask, index));
    count += __builtin_popcount(mask);
    index = _mm512_add_epi32(index, step);
  }
  return count;
}

POINTPEFT_AVX512 void rank_avx512(const float* kept, int64_t count, int32_t* rank) {
  const __m512i one = _mm512_set1_epi32(1);
  for (int64_t i = 0; i < count; i += 16) {
    const __m512 value = _mm512_loadu_ps(kept + i);
    __m512i below = _mm512_setzero_si512();
    for (int64_t j = 0; j < count; ++j)
      below = _mm512_mask_add_epi32(below, _mm512_cmp_ps_mask(_mm512_set1_ps(kept[j]), value, _CMP_LT_OQ), below, one);
    _mm512_storeu_si512(rank + i, below);
  }
}
#endif

// The k smallest of the survivors, which stand in the order of their indices, ascending and ties by index.
template <class A, class Rank>
POINTPEFT_INLINE void order(Scratch<A>& s, int64_t count, int64_t k, Out<A> out, Rank rank) {
  constexpr int64_t kMostRanked = 256;  // ranking is quadratic, but without a branch
  if (count > kMostRanked) {
    int32_t* permutation = s.rank;
    for (int64_t i = 0; i < count; ++i) permutation[i] = static_cast<int32_t>(i);
    const A* kept = s.kept;
    const auto before = [kept](int32_t a, int32_t b) { return kept[a] < kept[b] || (kept[a] == kept[b] && a < b); };
    if (count > k) std::nth_element(permutation, permutation + k, permutation + count, before);
    std::sort(permutation, permutation + k, before);
    for (int64_t j = 0; j < k; ++j) {
      if (out.sq_distance) out.sq_distance[j] = kept[permutation[j]];
      out.idx[j] = s.id[permutation[j]];
    }
    return;
  }
  rank(s.kept, count, s.rank);
  std::memset(s.seen, 0, count * sizeof(int32_t));
  for (int64_t i = 0; i < count; ++i) {
    const int64_t place = s.rank[i] + s.seen[s.rank[i]]++;  // equal ones share a rank, and come in index order
    if (place >= k) continue;
    if (out.sq_distance) out.sq_distance[place] = s.kept[i];
    out.idx[place] = s.id[i];
  }
}

// One query. `q` null: the distances are there already.
template <int G, class A, class Keep, class Rank>
POINTPEFT_INLINE void search_columns(const Rows<A>& rows, const A* q, int64_t k, Scratch<A>& s, Out<A> out, Keep keep,
                                     Rank rank) {
  A minima[G];
  for (int c = 0; c < G; ++c) minima[c] = std::numeric_limits<A>::infinity();
  if (q && rows.channels == 3) {
    distances_3<G>(rows, q, s.distance, minima);
  } else {
    if (q) distances_any(rows, q, s.distance);
    column_minima<G>(s.distance, rows.stride, minima);
  }
  const A bound = 2 * k <= kMostColumns ? bound_of<G>(minima, k) : std::numeric_limits<A>::infinity();
  order(s, keep(s.distance, rows.stride, bound, s.kept, s.id), k, out, rank);
}

template <class A, class Keep, class Rank>
POINTPEFT_INLINE void search_any(const Rows<A>& rows, const A* q, int64_t k, Scratch<A>& s, Out<A> out, Keep keep,
                                 Rank rank) {
  switch (columns_for(k)) {
    case 16:
      return search_columns<16>(rows, q, k, s, out, keep, rank);
    case 32:
      return search_columns<32>(rows, q, k, s, out, keep, rank);
    case 64:
      return search_columns<64>(rows, q, k, s, out, keep, rank);
    case 128:
      return search_columns<128>(rows, q, k, s, out, keep, rank);
    default:
      return search_columns<256>(rows, q, k, s, out, keep, rank);
  }
}

template <class A>
using Search = void (*)(const Rows<A>&, const A*, int64_t, Scratch<A>&, Out<A>);

template <class A>
void search_portable(const Rows<A>& rows, const A* q, int64_t k, Scratch<A>& s, Out<A> out) {
  search_any(rows, q, k, s, out, keep_portable<A>, rank_portable<A>);
}

#if defined(__x86_64__)
POINTPEFT_AVX2 void search_avx2(const Rows<float>& rows, const float* q, int64_t k, Scratch<float>& s, Out<float> out) {
  search_any(rows, q, k, s, out, keep_avx2, rank_avx2);
}

POINTPEFT_AVX512 void search_avx512(const Rows<float>& rows, const float* q, int64_t k, Scratch<float>& s,
                                    Out<float> out) {
  search_any(rows, q, k, s, out, keep_avx512, rank_avx512);
}
#endif

template <class A>
Search<A> search_for_level() {
#if defined(__x86_64__)
  if constexpr (std::is_same_v<A, float>) {
    if (cpu_level() == CpuLevel::avx512) return search_avx512;
    if (cpu_level() == CpuLevel::avx2) return search_avx2;
  }
#endif
  return search_portable<A>;
}

// --- clouds, batches, threads ---

// Copies a cloud into rows; returns whether every value is finite.
template <class T, class A>
bool load_rows(const T* points, int64_t stride_n, int64_t stride_c, const Rows<A>& shape, A* data) {
  bool finite = true;
  for (int64_t c = 0; c < shape.channels; ++c) {
    A* row = data + c * shape.stride;
    for (int64_t i = 0; i < shape.length; ++i) row[i] = static_cast<A>(points[i * stride_n + c * stride_c]);
    for (int64_t i = 0; i < shape.length; ++i) finite &= std::abs(row[i]) <= std::numeric_limits<A>::max();
    std::fill(row + shape.length, row + shape.stride, std::numeric_limits<A>::quiet_NaN());
  }
  return finite;
}

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
  const Search<A> search = search_for_level<A>();
  const T* support = static_cast<const T*>(p.support.const_data_ptr());
  const int64_t stride_b = p.support.stride(0), stride_n = p.support.stride(1), stride_c = p.support.stride(2);
  const int64_t padded = p.padded();
  std::atomic<bool> support_finite{true}, query_finite{true};
  const auto load = [&](int64_t b, A* data) {
    const int64_t length = p.lengths ? p.lengths[b] : p.n, columns = columns_for(p.k);
    const Rows<A> rows{data, p.channels, length, (length + columns - 1) / columns * columns};
    if (!load_rows(support + b * stride_b, stride_n, stride_c, rows, data)) support_finite = false;
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

bool worth_a_tree(const Problem& p) { return p.channels <= 3 && p.n >= kLeastTreePoints && p.m >= kLeastTreeQueries; }

// Points of fewer than 3 channels get zeros for the others, which change no distance.
template <class T, class A>
bool load_points(const T* from, int64_t stride_n, int64_t stride_c, int64_t channels, int64_t n, Point<A>* points) {
  std::atomic<bool> finite{true};
  torch::stable::parallel_for(0, n, 4096, [&](int64_t begin, int64_t end) {
    bool good = true;
    for (int64_t i = begin; i < end; ++i) {
      for (int64_t c = 0; c < 3; ++c) {
        points[i].c[c] = c < channels ? static_cast<A>(from[i * stride_n + c * stride_c]) : A(0);
        good &= std::abs(points[i].c[c]) <= std::numeric_limits<A>::max();
      }
      points[i].id = static_cast<BitsOf<A>>(i);
    }
    if (!good) finite = false;
  });
  return finite;
}

// Cloud b by a tree. The queries are taken in the order of a k-d split of their own, so that those that follow each
// other visit the same leaves.
template <class T>
void nearest_by_tree(const Problem& p, int64_t b, int64_t n) {
  using A = Accumulate<T>;
  const TreeSearch<A> search = tree_search_for_level<A>();
  const T* support = static_cast<const T*>(p.support.const_data_ptr()) + b * p.support.stride(0);
  const T* query = static_cast<const T*>(p.query.const_data_ptr()) + b * p.query.stride(0);
  const int64_t stride_n = p.support.stride(1), stride_c = p.support.stride(2);
  std::unique_ptr<Point<A>[]> points(new Point<A>[n]), queries(new Point<A>[p.m]);
  require(load_points(support, stride_n, stride_c, p.channels, n, points.get()),
          "support must be finite, got NaN or infinite values");
  require(load_points(query, p.query.stride(1), p.query.stride(2), p.channels, p.m, queries.get()),
          "query must be finite, got NaN or infinite values");
  const Tree<A> tree = build_tree(points.get(), n);
  points.reset();
  split_into_leaves(queries.get(), p.m, kLeaf);
  torch::stable::parallel_for(0, p.m, 64, [&](int64_t begin, int64_t end) {
    Candidates<A> candidates(p.k);
    for (int64_t i = begin; i < end; ++i) {
      const Point<A>& q = queries[i];
      const int64_t at = (b * p.m + q.id) * p.k;
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

// Squared norms of the points of a contiguous (B, N, C) tensor; returns whether all values are finite.
template <class A>
bool squared_norms(const Tensor& points, A* norms) {
  const int64_t count = points.size(0) * points.size(1), channels = points.size(2);
  const A* data = static_cast<const A*>(points.const_data_ptr());
  std::atomic<bool> finite{true};
  torch::stable::parallel_for(0, count, 256, [&](int64_t begin, int64_t end) {
    bool good = true;
    for (int64_t i = begin; i < end; ++i) {
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

// Many channels: |q|² + |s|² - 2 q·s, clamped at 0, with the products by the BLAS, some queries of all clouds at a
// time.
template <class A>
void nearest_by_product(const Problem& p) {
  const ScalarType dtype = std::is_same_v<A, double> ? ScalarType::Double : ScalarType::Float;
  const Tensor query = torch::stable::contiguous(torch::stable::to(p.query, dtype));
  const Tensor support = torch::stable::contiguous(torch::stable::to(p.support, dtype));
  std::unique_ptr<A[]> query_norm(new A[p.batch * p.m]), support_norm(new A[p.batch * p.n]);
  require(squared_norms(support, support_norm.get()), "support must be finite, got NaN or infinite values");
  require(squared_norms(query, query_norm.get()), "query must be finite, got NaN or infinite values");
  const Search<A> search = search_for_level<A>();
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

}  // namespace

void nearest(const Tensor& query, const Tensor& support, int64_t k, const std::optional<Tensor>& lengths,
             Tensor* sq_distance, Tensor& idx, Tensor* patches) {
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
  dispatch_floating("support", support.scalar_type(), [&](auto type) {
    using T = decltype(type);
    if (worth_a_tree(p))
      for (int64_t b = 0; b < p.batch; ++b) nearest_by_tree<T>(p, b, p.lengths ? p.lengths[b] : p.n);
    else if (p.channels <= kMostExactChannels)
      nearest_by_rows<T>(p);
    else
      nearest_by_product<Accumulate<T>>(p);
  });
}

namespace {

std::tuple<Tensor, Tensor> knn(const Tensor& query, const Tensor& support, int64_t k,
                               const std::optional<Tensor>& lengths) {
  const ScalarType dtype = support.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
  Tensor sq_distance = torch::stable::new_empty(support, {query.size(0), query.size(1), k}, dtype);
  Tensor idx = torch::stable::new_empty(support, {query.size(0), query.size(1), k}, ScalarType::Long);
  nearest(query, support, k, lengths, &sq_distance, idx, nullptr);
  return {sq_distance, idx};
}

}  // namespace
}  // namespace pointpeft

STABLE_TORCH_LIBRARY_FRAGMENT(pointpeft, m) {
  m.def("knn(Tensor query, Tensor support, int k, Tensor? lengths) -> (Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(pointpeft, CPU, m) { m.impl("knn", TORCH_BOX(&pointpeft::knn)); }
