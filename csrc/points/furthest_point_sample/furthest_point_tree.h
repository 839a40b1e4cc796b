// The tree of furthest_point_sample.cpp, for large clouds: points in leaves of a k-d split, under boxes with 16
// children a node. A step takes the distances to its pick into the leaves that they can change, and no other.
#pragma once

#include "common/kd_split.h"
#include "common/simd.h"

namespace pointpeft {
namespace {

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

constexpr int kFan = 16;          // children of a node
constexpr int64_t kLeaf = 64;     // the most points of a leaf
constexpr int64_t kLeafPad = 16;  // leaves begin at multiples of it
// Leaves that one step must visit before it is worth two threads: the first steps of clouds above 100000 points.
constexpr int64_t kParallelLeaves = 2048;

// The boxes of kFan children, the largest distance inside each, and the lowest index that has it.
template <class A>
struct alignas(64) Group {
  A low[3][kFan], high[3][kFan];
  BitsOf<A> most[kFan], id[kFan];
};

template <class A>
struct Tree {
  std::vector<Range> leaves;                  // in the rows below, padded
  Aligned<A> rows;                            // x, y, z, distance
  Aligned<BitsOf<A>> id;                      // of each point, its index in the cloud
  int64_t stride;                             // of the rows
  std::vector<std::vector<Group<A>>> levels;  // level 0 describes leaves, the last one is a single group
};

template <class A>
void enclose(Group<A>& group, int child, const A* low, const A* high) {
  for (int c = 0; c < 3; ++c) {
    group.low[c][child] = low[c];
    group.high[c][child] = high[c];
  }
}

// Groups for `count` children that do not exist yet: never visited, never picked.
template <class A>
std::vector<Group<A>> empty_groups(int64_t count) {
  Group<A> empty{};
  std::fill(empty.most, empty.most + kFan, bits_of(kPadding<A>));
  std::fill(empty.id, empty.id + kFan, std::numeric_limits<BitsOf<A>>::max());
  return std::vector<Group<A>>((count + kFan - 1) / kFan, empty);
}

// The maximum of `most`, and the lowest of the ids that have it.
template <class A, int W>
POINTPEFT_INLINE void best_of(const BitsOf<A>* most, const BitsOf<A>* id, int64_t count, BitsOf<A>& best,
                              BitsOf<A>& best_id) {
  typedef BitsOf<A> Bits __attribute__((vector_size(W * sizeof(A))));
  Bits top = Bits{} + std::numeric_limits<BitsOf<A>>::min(), first = Bits{} + std::numeric_limits<BitsOf<A>>::max();
  const Bits none = first;
  for (int64_t i = 0; i < count; i += W) {
    Bits value;
    std::memcpy(&value, most + i, sizeof(value));
    top = value > top ? value : top;
  }
  over_lanes<W / 2, true>(top);
  for (int64_t i = 0; i < count; i += W) {
    Bits value, ids;
    std::memcpy(&value, most + i, sizeof(value));
    std::memcpy(&ids, id + i, sizeof(ids));
    ids = value == top ? ids : none;
    first = ids < first ? ids : first;
  }
  over_lanes<W / 2, false>(first);
  best = top[0];
  best_id = first[0];
}

// The tree over `points`, which it reorders.
template <class A>
Tree<A> build(Point<A>* points, int64_t n, A min_sq_norm) {
  Tree<A> tree;
  const std::vector<Range> sources = split_into_leaves(points, n, kLeaf);
  tree.stride = 0;
  for (const Range r : sources) {
    const int64_t padded = (r.end - r.begin + kLeafPad - 1) / kLeafPad * kLeafPad;
    tree.leaves.push_back({tree.stride, tree.stride + padded});
    tree.stride += padded;
  }
  tree.rows = aligned_array<A>(4 * tree.stride);
  tree.id = aligned_array<BitsOf<A>>(tree.stride);
  const int64_t num_leaves = sources.size();
  tree.levels.push_back(empty_groups<A>(num_leaves));
  A *x = tree.rows.get(), *y = x + tree.stride, *z = y + tree.stride, *distance = z + tree.stride;
  torch::stable::parallel_for(0, num_leaves, 256, [&](int64_t begin, int64_t end) {
    for (int64_t leaf = begin; leaf < end; ++leaf) {
      const Point<A>* from = points + sources[leaf].begin;
      const int64_t length = sources[leaf].end - sources[leaf].begin, to = tree.leaves[leaf].begin;
      A low[3] = {from->c[0], from->c[1], from->c[2]}, high[3] = {low[0], low[1], low[2]}, most = kPadding<A>;
      BitsOf<A> id = std::numeric_limits<BitsOf<A>>::max();
      for (int64_t i = to; i < tree.leaves[leaf].end; ++i) {
        const bool real = i - to < length;
        const Point<A> point = real ? from[i - to] : Point<A>{{0, 0, 0}, std::numeric_limits<BitsOf<A>>::max()};
        x[i] = point.c[0];
        y[i] = point.c[1];
        z[i] = point.c[2];
        tree.id[i] = point.id;
        distance[i] = real ? first_distance(x[i], y[i], z[i], min_sq_norm) : kPadding<A>;
        if (!real) continue;
        for (int c = 0; c < 3; ++c) {
          low[c] = std::min(low[c], point.c[c]);
          high[c] = std::max(high[c], point.c[c]);
        }
        if (bits_of(distance[i]) > bits_of(most) || (bits_of(distance[i]) == bits_of(most) && point.id < id)) {
          most = distance[i];
          id = point.id;
        }
      }
      Group<A>& group = tree.levels[0][leaf / kFan];
      enclose(group, leaf % kFan, low, high);
      group.most[leaf % kFan] = bits_of(most);
      group.id[leaf % kFan] = id;
    }
  });
  for (int64_t children = num_leaves; tree.levels.back().size() > 1;) {
    const std::vector<Group<A>>& below = tree.levels.back();
    std::vector<Group<A>> above = empty_groups<A>(below.size());
    for (int64_t node = 0; node < static_cast<int64_t>(below.size()); ++node) {
      const int count = static_cast<int>(std::min<int64_t>(kFan, children - node * kFan));
      A low[3], high[3];
      for (int c = 0; c < 3; ++c) {
        low[c] = *std::min_element(below[node].low[c], below[node].low[c] + count);
        high[c] = *std::max_element(below[node].high[c], below[node].high[c] + count);
      }
      Group<A>& group = above[node / kFan];
      enclose(group, node % kFan, low, high);
      best_of<A, 1>(below[node].most, below[node].id, kFan, group.most[node % kFan], group.id[node % kFan]);
    }
    children = below.size();
    tree.levels.push_back(std::move(above));
  }
  return tree;
}

// The children of groups `which` whose box is nearer to c than their largest distance; no other can change. The
// distance of a box rounds like that of a point, step by step, and rounding keeps order: it never exceeds that of a
// point inside.
template <class A, int W>
POINTPEFT_INLINE int64_t children_near(const Group<A>* groups, const int32_t* which, int64_t count, const A* c,
                                       int32_t* out) {
  typedef A Vector __attribute__((vector_size(W * sizeof(A))));
  typedef BitsOf<A> Bits __attribute__((vector_size(W * sizeof(A))));
  int64_t found = 0;
  for (int64_t g = 0; g < count; ++g) {
    const Group<A>& group = groups[which[g]];
    BitsOf<A> near[kFan];
    for (int l = 0; l < kFan; l += W) {
      Vector step[3], most;
      for (int a = 0; a < 3; ++a) {
        Vector low, high;
        std::memcpy(&low, group.low[a] + l, sizeof(low));
        std::memcpy(&high, group.high[a] + l, sizeof(high));
        low -= c[a];
        high = c[a] - high;
        const Vector outside = low > high ? low : high;
        step[a] = outside > 0 ? outside : Vector{};
      }
      std::memcpy(&most, group.most + l, sizeof(most));
      const Vector d = step[0] * step[0] + step[1] * step[1] + step[2] * step[2];
      const Bits closer = d < most;
      std::memcpy(near + l, &closer, sizeof(closer));
    }
    for (int l = 0; l < kFan; ++l) {
      out[found] = which[g] * kFan + l;
      found -= near[l];
    }
  }
  return found;
}

// Takes the distances to c into the leaves `which`.
template <class A, int W>
POINTPEFT_INLINE void take_into_leaves(Tree<A>& tree, const int32_t* which, int64_t count, const A* c) {
  typedef A Vector __attribute__((vector_size(W * sizeof(A))));
  const A *px = tree.rows.get(), *py = px + tree.stride, *pz = py + tree.stride;
  A* distance = tree.rows.get() + 3 * tree.stride;
  for (int64_t k = 0; k < count; ++k) {
    const Range leaf = tree.leaves[which[k]];
    for (int64_t i = leaf.begin; i < leaf.end; i += W) {
      Vector x, y, z, old;
      std::memcpy(&x, px + i, sizeof(x));
      std::memcpy(&y, py + i, sizeof(y));
      std::memcpy(&z, pz + i, sizeof(z));
      std::memcpy(&old, distance + i, sizeof(old));
      const Vector dx = x - c[0], dy = y - c[1], dz = z - c[2];
      const Vector d = dx * dx + dy * dy + dz * dz;
      const Vector nearest = d < old ? d : old;
      std::memcpy(distance + i, &nearest, sizeof(nearest));
    }
    Group<A>& group = tree.levels[0][which[k] / kFan];
    const int child = which[k] % kFan;
    best_of<A, W>(reinterpret_cast<const BitsOf<A>*>(distance + leaf.begin), tree.id.get() + leaf.begin,
                  leaf.end - leaf.begin, group.most[child], group.id[child]);
  }
}

// Brings nodes `which` of level `level` up to date with their children, the groups of the level below.
template <class A, int W>
POINTPEFT_INLINE void refresh(Tree<A>& tree, int64_t level, const int32_t* which, int64_t count) {
  for (int64_t k = 0; k < count; ++k) {
    const Group<A>& children = tree.levels[level - 1][which[k]];
    Group<A>& group = tree.levels[level][which[k] / kFan];
    best_of<A, W>(children.most, children.id, kFan, group.most[which[k] % kFan], group.id[which[k] % kFan]);
  }
}

}  // namespace
}  // namespace pointpeft
