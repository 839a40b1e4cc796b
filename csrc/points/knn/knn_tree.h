// Nearest neighbours in a large cloud on the CPU. A query goes down a tree of boxes (common/box_tree.h), the nearest
// box first, and looks only at leaves that may hold one of its k nearest: those whose box is not farther than the k-th
// best distance so far. Candidates are gathered without an order, whole vectors at a time; when there are too many,
// bisection finds a new bound near the k-th distance and those above it are dropped, and only the last few are put in
// order.
//
// Exact, ties by the lowest index included: a box is never farther than a point inside, and a box exactly as far as the
// k-th neighbour is left out only if all its points have larger indices.
#pragma once

#include "common/box_tree.h"
#include "common/simd.h"

namespace pointpeft::knn {
namespace {

constexpr int kLanes = static_cast<int>(kLeafPad);  // points of a block

// 16 points of a leaf. The last block of a leaf is padded with NaN: a NaN distance is below no bound.
template <class A>
struct alignas(64) Block {
  A c[3][kLanes];
  int32_t id[kLanes];
};

// A node: the lowest index inside each child's box, and how many children there are.
template <class A>
struct alignas(64) Node : Boxes<A> {
  int32_t first_id[kFan], count;
};

template <class A>
struct Tree {
  BoxTree<Node<A>> boxes;
  std::unique_ptr<Block<A>[]> blocks;
};

// The tree over `points`, which it reorders.
template <class A>
Tree<A> build_tree(Point<A>* points, int64_t n) {
  Tree<A> tree;
  const auto allocate = [&](const BoxTree<Node<A>>& boxes) { tree.blocks.reset(new Block<A>[boxes.num_blocks()]); };
  const auto fill = [&](const BoxTree<Node<A>>& boxes, int64_t leaf, const Point<A>* from, int64_t count, Node<A>& node,
                        int child) {
    Block<A>* to = tree.blocks.get() + boxes.first_block[leaf];
    node.first_id[child] = static_cast<int32_t>(from->id);  // a leaf keeps the order of its points
    for (int c = 0; c < 3; ++c) {
      for (int64_t i = 0; i < count; ++i) to[i / kLanes].c[c][i % kLanes] = from[i].c[c];
      for (int64_t i = count; i % kLanes; ++i) to[i / kLanes].c[c][i % kLanes] = std::numeric_limits<A>::quiet_NaN();
    }
    for (int64_t i = 0; i < count; ++i) to[i / kLanes].id[i % kLanes] = static_cast<int32_t>(from[i].id);
  };
  const auto summarize = [](const Node<A>& node, Node<A>& parent, int child) {
    parent.first_id[child] = *std::min_element(node.first_id, node.first_id + kFan);
  };
  Node<A> empty{};
  std::fill_n(empty.first_id, kFan, std::numeric_limits<int32_t>::max());
  tree.boxes = build_box_tree(points, n, empty, allocate, fill, summarize);
  int64_t children = tree.boxes.num_leaves();
  for (std::vector<Node<A>>& nodes : tree.boxes.levels) {
    for (size_t i = 0; i < nodes.size(); ++i)
      nodes[i].count = static_cast<int32_t>(std::min<int64_t>(kFan, children - static_cast<int64_t>(i) * kFan));
    children = nodes.size();
  }
  return tree;
}

// The candidates of one query: those found so far that are not farther than the bound, in no order.
template <class A>
struct Candidates {
  explicit Candidates(int64_t k)
      : slack(16 + k / 2),
        capacity(k + slack + kLeaf + 2 * kLanes),
        distances(new A[capacity]),
        ids(new int32_t[capacity]),
        ranks(new int32_t[capacity]),
        sorted_distances(new A[capacity]),
        sorted_ids(new int32_t[capacity]),
        distance(distances.get()),
        id(ids.get()),
        rank(ranks.get()) {}
  const int64_t slack, capacity;
  std::unique_ptr<A[]> distances;
  std::unique_ptr<int32_t[]> ids, ranks;
  std::unique_ptr<A[]> sorted_distances;  // for the last step
  std::unique_ptr<int32_t[]> sorted_ids;
  std::vector<std::pair<A, int32_t>> pairs;
  A* distance;
  int32_t *id, *rank;
  int64_t count;
  A bound;           // at least k points are not farther
  int32_t bound_id;  // and of those exactly as far none beyond this index is among the k nearest
};

// --- the steps that are written for each vector level, at first the portable ones: the nearest child left, -1 where
// none is within the bound; a leaf's candidates; the least and the largest distance; those left under a new bound;
// ranks. `count` on input is where to write, on output includes what was found. Whole vectors are written. ---

template <class Level, class A>
struct Steps {
  static int nearest(const A* distance, unsigned left, A bound) {
    int child = -1;
    for (; left; left &= left - 1) {
      const int other = __builtin_ctz(left);
      if (distance[other] <= bound && (child < 0 || distance[other] < distance[child])) child = other;
    }
    return child;
  }
  static int64_t scan(const Block<A>* block, const Block<A>* end, const A* q, A bound, A* kept, int32_t* id,
                      int64_t count) {
    for (; block < end; ++block)
      for (int l = 0; l < kLanes; ++l) {
        const A dx = q[0] - block->c[0][l], dy = q[1] - block->c[1][l], dz = q[2] - block->c[2][l];
        const A d = dx * dx + dy * dy + dz * dz;
        kept[count] = d;
        id[count] = block->id[l];
        count += d <= bound;
      }
    return count;
  }
  static std::pair<A, A> extent(const A* distance, int64_t count) {
    A low = distance[0], high = low;
    for (int64_t i = 0; i < count; ++i) {
      low = distance[i] < low ? distance[i] : low;
      high = distance[i] > high ? distance[i] : high;
    }
    return {low, high};
  }
  static int64_t keep(A* kept, int32_t* id, int64_t count, A bound) {
    int64_t left = 0;
    for (int64_t i = 0; i < count; ++i) {
      const A d = kept[i];
      kept[left] = d;
      id[left] = id[i];
      left += d <= bound;
    }
    return left;
  }
  static void rank(const A* kept, const int32_t* id, int64_t count, int32_t* rank) {
    for (int64_t i = 0; i < count; ++i) {
      int32_t before = 0;
      for (int64_t j = 0; j < count; ++j) before += (kept[j] < kept[i]) | ((kept[j] == kept[i]) & (id[j] < id[i]));
      rank[i] = before;
    }
  }
};

#if defined(__x86_64__)
template <>
struct Steps<Avx2, float> {
  POINTPEFT_AVX2 static int nearest(const float* distance, unsigned left, float bound) {
    const __m256i bits = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128), mask = _mm256_set1_epi32(left);
    const auto among = [&](const float* from, __m256i of) __attribute__((always_inline, target("avx2"))) {
      const __m256i there = _mm256_cmpeq_epi32(_mm256_and_si256(mask, of), of);
      return _mm256_blendv_ps(_mm256_set1_ps(std::numeric_limits<float>::infinity()), _mm256_loadu_ps(from),
                              _mm256_castsi256_ps(there));
    };
    const __m256 low = among(distance, bits), high = among(distance + 8, _mm256_slli_epi32(bits, 8));
    const float smallest = least(_mm256_min_ps(low, high));
    left &= _mm256_movemask_ps(_mm256_cmp_ps(low, _mm256_set1_ps(smallest), _CMP_EQ_OQ)) |
            _mm256_movemask_ps(_mm256_cmp_ps(high, _mm256_set1_ps(smallest), _CMP_EQ_OQ)) << 8;
    return left && smallest <= bound ? __builtin_ctz(left) : -1;
  }
  POINTPEFT_AVX2 static int64_t scan(const Block<float>* block, const Block<float>* end, const float* q, float bound,
                                     float* kept, int32_t* id, int64_t count) {
    const __m256 qx = _mm256_set1_ps(q[0]), qy = _mm256_set1_ps(q[1]), qz = _mm256_set1_ps(q[2]);
    const __m256 limit = _mm256_set1_ps(bound);
    for (; block < end; ++block)
      for (int half = 0; half < kLanes; half += 8) {
        const __m256 dx = _mm256_sub_ps(qx, _mm256_loadu_ps(block->c[0] + half));
        const __m256 dy = _mm256_sub_ps(qy, _mm256_loadu_ps(block->c[1] + half));
        const __m256 dz = _mm256_sub_ps(qz, _mm256_loadu_ps(block->c[2] + half));
        const __m256 d =
            _mm256_add_ps(_mm256_add_ps(_mm256_mul_ps(dx, dx), _mm256_mul_ps(dy, dy)), _mm256_mul_ps(dz, dz));
        const unsigned mask = _mm256_movemask_ps(_mm256_cmp_ps(d, limit, _CMP_LE_OQ));
        const __m256i index = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(block->id + half));
        // Whole vectors without a branch: whether some lane is near enough is hard to predict.
        _mm256_storeu_ps(kept + count, _mm256_permutevar8x32_ps(d, packing(mask)));
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(id + count), _mm256_permutevar8x32_epi32(index, packing(mask)));
        count += __builtin_popcount(mask);
      }
    return count;
  }
  POINTPEFT_AVX2 static std::pair<float, float> extent(const float* distance, int64_t count) {
    __m256 low = _mm256_set1_ps(distance[0]), high = low;
    for (int64_t i = 0; i < count; i += 8) {  // of NaN and a number these give the second
      low = _mm256_min_ps(_mm256_loadu_ps(distance + i), low);
      high = _mm256_max_ps(_mm256_loadu_ps(distance + i), high);
    }
    return {least(low), -least(_mm256_sub_ps(_mm256_setzero_ps(), high))};
  }
  POINTPEFT_AVX2 static float least(__m256 values) {
    values = _mm256_min_ps(values, _mm256_permute2f128_ps(values, values, 1));
    values = _mm256_min_ps(values, _mm256_permute_ps(values, 0b01001110));
    return _mm256_cvtss_f32(_mm256_min_ps(values, _mm256_permute_ps(values, 0b10110001)));
  }
  POINTPEFT_AVX2 static int64_t keep(float* kept, int32_t* id, int64_t count, float bound) {
    const __m256 limit = _mm256_set1_ps(bound);
    int64_t left = 0;
    for (int64_t i = 0; i < count; i += 8) {  // what lies beyond the count is NaN
      const __m256 d = _mm256_loadu_ps(kept + i);
      const __m256i index = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(id + i));
      const unsigned mask = _mm256_movemask_ps(_mm256_cmp_ps(d, limit, _CMP_LE_OQ));
      _mm256_storeu_ps(kept + left, _mm256_permutevar8x32_ps(d, packing(mask)));
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(id + left), _mm256_permutevar8x32_epi32(index, packing(mask)));
      left += __builtin_popcount(mask);
    }
    return left;
  }
  POINTPEFT_AVX2 static void rank(const float* kept, const int32_t* id, int64_t count, int32_t* rank) {
    for (int64_t i = 0; i < count; i += 16) {  // two vectors at a time, whose sums do not wait for each other
      const __m256 value[2] = {_mm256_loadu_ps(kept + i), _mm256_loadu_ps(kept + i + 8)};
      const __m256i own[2] = {_mm256_loadu_si256(reinterpret_cast<const __m256i*>(id + i)),
                              _mm256_loadu_si256(reinterpret_cast<const __m256i*>(id + i + 8))};
      __m256i before[2] = {_mm256_setzero_si256(), _mm256_setzero_si256()};
      for (int64_t j = 0; j < count; ++j) {
        const __m256 other = _mm256_set1_ps(kept[j]);
        const __m256i other_id = _mm256_set1_epi32(id[j]);
        for (int v = 0; v < 2; ++v) {
          const __m256 less = _mm256_cmp_ps(other, value[v], _CMP_LT_OQ),
                       equal = _mm256_cmp_ps(other, value[v], _CMP_EQ_OQ);
          const __m256 tie = _mm256_and_ps(equal, _mm256_castsi256_ps(_mm256_cmpgt_epi32(own[v], other_id)));
          before[v] = _mm256_sub_epi32(before[v], _mm256_castps_si256(_mm256_or_ps(less, tie)));
        }
      }
      for (int v = 0; v < 2; ++v) _mm256_storeu_si256(reinterpret_cast<__m256i*>(rank + i + 8 * v), before[v]);
    }
  }
};

template <>
struct Steps<Avx512, float> {
  POINTPEFT_AVX512 static int nearest(const float* distance, unsigned left, float bound) {
    left &= _mm512_cmp_ps_mask(_mm512_loadu_ps(distance), _mm512_set1_ps(bound), _CMP_LE_OQ);
    return Steps<Portable, float>::nearest(distance, left, bound);
  }
  POINTPEFT_AVX512 static int64_t scan(const Block<float>* block, const Block<float>* end, const float* q, float bound,
                                       float* kept, int32_t* id, int64_t count) {
    const __m512 qx = _mm512_set1_ps(q[0]), qy = _mm512_set1_ps(q[1]), qz = _mm512_set1_ps(q[2]);
    const __m512 limit = _mm512_set1_ps(bound);
    for (; block < end; ++block) {
      const __m512 dx = _mm512_sub_ps(qx, _mm512_load_ps(block->c[0]));
      const __m512 dy = _mm512_sub_ps(qy, _mm512_load_ps(block->c[1]));
      const __m512 dz = _mm512_sub_ps(qz, _mm512_load_ps(block->c[2]));
      const __m512 d =
          _mm512_add_ps(_mm512_add_ps(_mm512_mul_ps(dx, dx), _mm512_mul_ps(dy, dy)), _mm512_mul_ps(dz, dz));
      const __mmask16 mask = _mm512_cmp_ps_mask(d, limit, _CMP_LE_OQ);
      // Compressed in a register, then stored whole: compressing straight to memory is microcode on AMD.
      _mm512_storeu_ps(kept + count, _mm512_maskz_compress_ps(mask, d));
      _mm512_storeu_si512(id + count, _mm512_maskz_compress_epi32(mask, _mm512_load_si512(block->id)));
      count += __builtin_popcount(mask);
    }
    return count;
  }
  POINTPEFT_AVX512 static std::pair<float, float> extent(const float* distance, int64_t count) {
    return Steps<Avx2, float>::extent(distance, count);
  }
  POINTPEFT_AVX512 static int64_t keep(float* kept, int32_t* id, int64_t count, float bound) {
    const __m512 limit = _mm512_set1_ps(bound);
    int64_t left = 0;
    for (int64_t i = 0; i < count; i += 16) {  // what lies beyond the count is NaN
      const __m512 d = _mm512_loadu_ps(kept + i);
      const __m512i index = _mm512_loadu_si512(id + i);
      const __mmask16 mask = _mm512_cmp_ps_mask(d, limit, _CMP_LE_OQ);
      _mm512_storeu_ps(kept + left, _mm512_maskz_compress_ps(mask, d));
      _mm512_storeu_si512(id + left, _mm512_maskz_compress_epi32(mask, index));
      left += __builtin_popcount(mask);
    }
    return left;
  }
  POINTPEFT_AVX512 static void rank(const float* kept, const int32_t* id, int64_t count, int32_t* rank) {
    const __m512i one = _mm512_set1_epi32(1);
    for (int64_t i = 0; i < count; i += 16) {
      const __m512 value = _mm512_loadu_ps(kept + i);
      const __m512i own = _mm512_loadu_si512(id + i);
      __m512i before = _mm512_setzero_si512();
      for (int64_t j = 0; j < count; ++j) {
        const __m512 other = _mm512_set1_ps(kept[j]);
        const __mmask16 equal = _mm512_cmp_ps_mask(other, value, _CMP_EQ_OQ);
        const __mmask16 tie = _mm512_mask_cmplt_epi32_mask(equal, _mm512_set1_epi32(id[j]), own);
        before = _mm512_mask_add_epi32(before, _mm512_cmp_ps_mask(other, value, _CMP_LT_OQ) | tie, before, one);
      }
      _mm512_storeu_si512(rank + i, before);
    }
  }
};
#endif

// --- a query ---

template <class A>
POINTPEFT_INLINE void box_distances(const Boxes<A>& boxes, const A* q, A* __restrict distance) {
  A sum[kFan];
  for (int c = 0; c < 3; ++c)
    for (int l = 0; l < kFan; ++l) {
      const A below = boxes.low[c][l] - q[c], above = q[c] - boxes.high[c][l];
      const A outside = below > above ? below : above;
      const A step = outside > 0 ? outside : 0;
      sum[l] = c == 0 ? step * step : sum[l] + step * step;
    }
  for (int l = 0; l < kFan; ++l) distance[l] = sum[l];
}

// Exactly the k nearest candidates: for ties, which no bound tells apart.
template <class A>
void keep_exactly(Candidates<A>& s, int64_t k) {
  s.pairs.resize(s.count);
  for (int64_t i = 0; i < s.count; ++i) s.pairs[i] = {s.distance[i], s.id[i]};
  std::nth_element(s.pairs.begin(), s.pairs.begin() + (k - 1), s.pairs.end());
  for (int64_t i = 0; i < k; ++i) {
    s.distance[i] = s.pairs[i].first;
    s.id[i] = s.pairs[i].second;
  }
  s.count = k;
  s.bound = s.pairs[k - 1].first;
  s.bound_id = s.pairs[k - 1].second;
}

// Lowers the bound to about the k-th distance by bisection and drops what lies above; count >= k.
template <class Level, class A>
POINTPEFT_INLINE void tighten(Candidates<A>& s, int64_t k) {
  const int64_t padded = (s.count + kLanes - 1) / kLanes * kLanes;
  for (int64_t i = 0; i < kLanes; ++i) s.distance[s.count + i] = std::numeric_limits<A>::quiet_NaN();
  const A* __restrict distance = s.distance;
  auto [low, high] = Steps<Level, A>::extent(distance, padded);
  for (int step = 0; step < 12 && low < high; ++step) {
    const A middle = low + (high - low) / 2;
    int32_t count = 0;
    for (int64_t i = 0; i < padded; ++i) count += distance[i] <= middle;
    if (count >= k) {
      high = middle;
      if (count <= k + k / 8) break;
    } else {
      low = middle;
    }
  }
  if (high < s.bound) {
    s.bound = high;
    s.bound_id = std::numeric_limits<int32_t>::max();
  }
  s.count = Steps<Level, A>::keep(s.distance, s.id, s.count, s.bound);
  if (s.count > k + s.slack / 2) keep_exactly(s, k);
}

template <class Level, class A>
POINTPEFT_INLINE void in_order(Candidates<A>& s, int64_t k, A* sq_distance, int64_t* idx) {
  constexpr int64_t kMostRanked = 256;  // ranking is quadratic, but without a branch
  if (s.count > kMostRanked) {
    s.pairs.resize(s.count);
    for (int64_t i = 0; i < s.count; ++i) s.pairs[i] = {s.distance[i], s.id[i]};
    std::sort(s.pairs.begin(), s.pairs.end());
    for (int64_t j = 0; j < k; ++j) {
      if (sq_distance) sq_distance[j] = s.pairs[j].first;
      idx[j] = s.pairs[j].second;
    }
    return;
  }
  Steps<Level, A>::rank(s.distance, s.id, s.count, s.rank);
  for (int64_t i = 0; i < s.count; ++i) {  // all of them: which are among the k is hard to predict
    s.sorted_distances[s.rank[i]] = s.distance[i];
    s.sorted_ids[s.rank[i]] = s.id[i];
  }
  if (sq_distance) std::copy(s.sorted_distances.get(), s.sorted_distances.get() + k, sq_distance);
  std::copy(s.sorted_ids.get(), s.sorted_ids.get() + k, idx);
}

template <class Level, class A>
POINTPEFT_INLINE void search_tree(const Tree<A>& tree, const A* q, int64_t k, Candidates<A>& s, A* sq_distance,
                                  int64_t* idx) {
  struct Frame {
    alignas(64) A distance[kFan];
    const Node<A>* boxes;
    int64_t node;
    unsigned left;
  };
  Frame frames[kMostLevels];
  const auto open = [&](int level, int64_t node) __attribute__((always_inline)) {
    Frame& frame = frames[level];
    frame.boxes = &tree.boxes.levels[level][node];
    frame.node = node;
    frame.left = (1u << frame.boxes->count) - 1;
    box_distances(*frame.boxes, q, frame.distance);
  };
  const int top = static_cast<int>(tree.boxes.levels.size()) - 1;
  int level = top;
  int64_t limit = k;
  s.count = 0;
  s.bound = std::numeric_limits<A>::infinity();
  s.bound_id = std::numeric_limits<int32_t>::max();
  open(level, 0);
  while (level <= top) {
    Frame& frame = frames[level];
    const int child = Steps<Level, A>::nearest(frame.distance, frame.left, s.bound);
    if (child < 0) {
      ++level;
      continue;
    }
    frame.left &= ~(1u << child);
    if (frame.distance[child] == s.bound && frame.boxes->first_id[child] > s.bound_id) continue;
    const int64_t node = frame.node * kFan + child;
    if (level > 0) {
      open(--level, node);
      continue;
    }
    const Block<A>* blocks = tree.blocks.get();
    s.count = Steps<Level, A>::scan(blocks + tree.boxes.first_block[node], blocks + tree.boxes.first_block[node + 1], q,
                                    s.bound, s.distance, s.id, s.count);
    if (s.count >= limit) {
      tighten<Level>(s, k);
      limit = k + s.slack;
    }
  }
  if (s.count > k + 4) tighten<Level>(s, k);
  in_order<Level>(s, k, sq_distance, idx);
}

template <class A>
using TreeSearch = void (*)(const Tree<A>&, const A*, int64_t, Candidates<A>&, A*, int64_t*);

template <class A>
TreeSearch<A> tree_search_in_use() {
  return dispatch_float_level<A>([](auto level) -> TreeSearch<A> {
    using Level = decltype(level);
    return Level::template compiled<search_tree<Level, A>>;
  });
}

}  // namespace
}  // namespace pointpeft::knn
