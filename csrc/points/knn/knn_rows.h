// Nearest neighbours in small clouds on the CPU, without a heap, whose branches nobody could predict. One pass computes
// all distances of a query and the minimum of each of some columns of them; at least k distances do not exceed the k-th
// smallest of these minima, so a bisection over the minima gives a bound that few distances pass. The few survivors are
// compressed to the front, whole vectors at a time, and put in order by counting, for each, how many come before it.
#pragma once

#include "common/load.h"
#include "common/simd.h"

namespace pointpeft::knn {
namespace {

constexpr int64_t kMostColumns = 256;  // of the column minima, which serve k up to half as many
constexpr int64_t kPad = 16;           // survivors are written in whole vectors

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
        sorted_id(rank + n + kPad) {}
  Aligned<A> memory;
  Aligned<int32_t> ints;
  A *distance, *kept;              // of all points, at last of the survivors in order; of the survivors
  int32_t *id, *rank, *sorted_id;  // of the survivors
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
int64_t keep_portable(const A* distance, int64_t n, A bound, int64_t, A* kept, int32_t* id) {
  int64_t count = 0;
  for (int64_t i = 0; i < n; ++i) {
    kept[count] = distance[i];
    id[count] = static_cast<int32_t>(i);
    count += distance[i] <= bound;
  }
  return count;
}

// The place of each in ascending order; equal ones keep the order they stand in.
template <class A>
void rank_portable(const A* kept, int64_t count, int32_t* rank) {
  for (int64_t i = 0; i < count; ++i) {
    int32_t before = 0;
    for (int64_t j = 0; j < i; ++j) before += kept[j] <= kept[i];
    for (int64_t j = i + 1; j < count; ++j) before += kept[j] < kept[i];
    rank[i] = before;
  }
}

#if defined(__x86_64__)
POINTPEFT_AVX2 int64_t keep_avx2(const float* distance, int64_t n, float bound, int64_t k, float* kept, int32_t* id) {
  constexpr int64_t kStretch = 64;
  const __m256 limit = _mm256_set1_ps(bound);
  const __m256i lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  const bool few = n >= 256 * k;  // survivors are somewhat more than k
  int64_t count = 0;
  for (int64_t i = 0; i < n; i += kStretch) {
    const int64_t end = std::min(i + kStretch, n);  // a multiple of 16
    if (few) {
      __m256 any = _mm256_setzero_ps();
      for (int64_t j = i; j < end; j += 8)
        any = _mm256_or_ps(any, _mm256_cmp_ps(_mm256_loadu_ps(distance + j), limit, _CMP_LE_OQ));
      if (!_mm256_movemask_ps(any)) continue;
    }
    for (int64_t j = i; j < end; j += 8) {  // without a branch: whether one of 8 survives is hard to predict
      const __m256 d = _mm256_loadu_ps(distance + j);
      const __m256i index = _mm256_add_epi32(lanes, _mm256_set1_epi32(static_cast<int>(j)));
      const unsigned mask = _mm256_movemask_ps(_mm256_cmp_ps(d, limit, _CMP_LE_OQ));
      _mm256_storeu_ps(kept + count, _mm256_permutevar8x32_ps(d, packing(mask)));
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(id + count), _mm256_permutevar8x32_epi32(index, packing(mask)));
      count += __builtin_popcount(mask);
    }
  }
  return count;
}

POINTPEFT_AVX2 void rank_avx2(const float* kept, int64_t count, int32_t* rank) {
  const __m256i lanes[2] = {_mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7), _mm256_setr_epi32(8, 9, 10, 11, 12, 13, 14, 15)};
  for (int64_t i = 0; i < count; i += 16) {  // two vectors at a time, whose sums do not wait for each other
    const __m256 value[2] = {_mm256_loadu_ps(kept + i), _mm256_loadu_ps(kept + i + 8)};
    __m256i before[2] = {_mm256_setzero_si256(), _mm256_setzero_si256()};
    int64_t j = 0;
    for (; j < i; ++j)
      for (int v = 0; v < 2; ++v) {
        const __m256 is = _mm256_cmp_ps(_mm256_set1_ps(kept[j]), value[v], _CMP_LE_OQ);
        before[v] = _mm256_sub_epi32(before[v], _mm256_castps_si256(is));
      }
    for (const int64_t end = std::min(i + 16, count); j < end; ++j)  // of equal ones, those of lower lanes come first
      for (int v = 0; v < 2; ++v) {
        const __m256 other = _mm256_set1_ps(kept[j]);
        const __m256i lower = _mm256_cmpgt_epi32(lanes[v], _mm256_set1_epi32(static_cast<int>(j - i)));
        const __m256 is = _mm256_blendv_ps(_mm256_cmp_ps(other, value[v], _CMP_LT_OQ),
                                           _mm256_cmp_ps(other, value[v], _CMP_LE_OQ), _mm256_castsi256_ps(lower));
        before[v] = _mm256_sub_epi32(before[v], _mm256_castps_si256(is));
      }
    for (; j < count; ++j)
      for (int v = 0; v < 2; ++v) {
        const __m256 is = _mm256_cmp_ps(_mm256_set1_ps(kept[j]), value[v], _CMP_LT_OQ);
        before[v] = _mm256_sub_epi32(before[v], _mm256_castps_si256(is));
      }
    for (int v = 0; v < 2; ++v) _mm256_storeu_si256(reinterpret_cast<__m256i*>(rank + i + 8 * v), before[v]);
  }
}

POINTPEFT_AVX512 int64_t keep_avx512(const float* distance, int64_t n, float bound, int64_t, float* kept, int32_t* id) {
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
    __m512i before = _mm512_setzero_si512();
    int64_t j = 0;
    for (; j < i; ++j)
      before =
          _mm512_mask_add_epi32(before, _mm512_cmp_ps_mask(_mm512_set1_ps(kept[j]), value, _CMP_LE_OQ), before, one);
    for (const int64_t end = std::min(i + 16, count); j < end; ++j) {  // of equal ones, those of lower lanes come first
      const __m512 other = _mm512_set1_ps(kept[j]);
      const __mmask16 lower = static_cast<__mmask16>(0xfffe << (j - i));
      const __mmask16 tie = lower & _mm512_cmp_ps_mask(other, value, _CMP_EQ_OQ);
      before = _mm512_mask_add_epi32(before, tie | _mm512_cmp_ps_mask(other, value, _CMP_LT_OQ), before, one);
    }
    for (; j < count; ++j)
      before =
          _mm512_mask_add_epi32(before, _mm512_cmp_ps_mask(_mm512_set1_ps(kept[j]), value, _CMP_LT_OQ), before, one);
    _mm512_storeu_si512(rank + i, before);
  }
}
#endif

// The k smallest of the survivors, which stand in the order of their indices, ascending and ties by index. The
// distances of the other points are lost.
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
  for (int64_t i = 0; i < count; ++i) {  // all of them: which are among the k is hard to predict
    s.distance[s.rank[i]] = s.kept[i];
    s.sorted_id[s.rank[i]] = s.id[i];
  }
  if (out.sq_distance) std::copy(s.distance, s.distance + k, out.sq_distance);
  std::copy(s.sorted_id, s.sorted_id + k, out.idx);
}

// The two steps that are written in intrinsics where a level has them.
template <class Level, class A>
constexpr auto kKeep = keep_portable<A>;
template <class Level, class A>
constexpr auto kRank = rank_portable<A>;
#if defined(__x86_64__)
template <>
constexpr auto kKeep<Avx2, float> = keep_avx2;
template <>
constexpr auto kRank<Avx2, float> = rank_avx2;
template <>
constexpr auto kKeep<Avx512, float> = keep_avx512;
template <>
constexpr auto kRank<Avx512, float> = rank_avx512;
#endif

// One query. `q` null: the distances are there already.
template <int G, class Level, class A>
POINTPEFT_INLINE void search_columns(const Rows<A>& rows, const A* q, int64_t k, Scratch<A>& s, Out<A> out) {
  A minima[G];
  for (int c = 0; c < G; ++c) minima[c] = std::numeric_limits<A>::infinity();
  if (q && rows.channels == 3) {
    distances_3<G>(rows, q, s.distance, minima);
  } else {
    if (q) distances_any(rows, q, s.distance);
    column_minima<G>(s.distance, rows.stride, minima);
  }
  const A bound = 2 * k <= kMostColumns ? bound_of<G>(minima, k) : std::numeric_limits<A>::infinity();
  const int64_t count = kKeep<Level, A>(s.distance, rows.stride, bound, k, s.kept, s.id);
  order(s, count, k, out, kRank<Level, A>);
}

template <class Level, class A>
POINTPEFT_INLINE void search_rows(const Rows<A>& rows, const A* q, int64_t k, Scratch<A>& s, Out<A> out) {
  switch (columns_for(k)) {
    case 16:
      return search_columns<16, Level>(rows, q, k, s, out);
    case 32:
      return search_columns<32, Level>(rows, q, k, s, out);
    case 64:
      return search_columns<64, Level>(rows, q, k, s, out);
    case 128:
      return search_columns<128, Level>(rows, q, k, s, out);
    default:
      return search_columns<256, Level>(rows, q, k, s, out);
  }
}

template <class A>
using Search = void (*)(const Rows<A>&, const A*, int64_t, Scratch<A>&, Out<A>);

template <class A>
Search<A> search_in_use() {
  return dispatch_float_level<A>([](auto level) -> Search<A> {
    using Level = decltype(level);
    return Level::template compiled<search_rows<Level, A>>;
  });
}

}  // namespace
}  // namespace pointpeft::knn
