// Farthest point sampling of a large cloud on the CPU. Late in a sampling a pick changes only the distances of points
// around it, so most of the cloud need not be read: the points lie under a tree of boxes (common/box_tree.h), whose
// nodes hold the largest distance inside each box and the lowest index that has it. A step goes down to the leaves
// whose box is nearer to the pick than their largest distance, takes the new distances in there, brings those numbers
// up to date on the way back, and reads the next pick at the root.
//
// Rows x, y, z and distance of the leaves one after another, each leaf padded to 16 points. A step visits the boxes
// level by level, from lists of nodes; no leaf is visited twice, so threads may share the leaves of a step out.
#pragma once

#include "common/box_tree.h"
#include "common/simd.h"

namespace pointpeft::furthest_point_sample {
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

// Leaves that one step must visit before it is worth two threads: the first steps of clouds above 100000 points.
constexpr int64_t kParallelLeaves = 2048;

// A node: the largest distance inside each child's box, and the lowest index that has it.
template <class A>
struct alignas(64) Node : Boxes<A> {
  BitsOf<A> most[kFan], id[kFan];
};

template <class A>
struct Tree {
  BoxTree<Node<A>> boxes;
  Aligned<A> rows;        // x, y, z, distance of the leaves' points, each leaf padded to whole blocks
  Aligned<BitsOf<A>> id;  // of each point, its index in the cloud
  int64_t stride;         // of the rows
};

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
  const auto allocate = [&](const BoxTree<Node<A>>& boxes) {
    tree.stride = boxes.num_blocks() * kLeafPad;
    tree.rows = aligned_array<A>(4 * tree.stride);
    tree.id = aligned_array<BitsOf<A>>(tree.stride);
  };
  const auto fill = [&](const BoxTree<Node<A>>& boxes, int64_t leaf, const Point<A>* from, int64_t count, Node<A>& node,
                        int child) {
    A *x = tree.rows.get(), *y = x + tree.stride, *z = y + tree.stride, *distance = z + tree.stride;
    A most = kPadding<A>;
    BitsOf<A> id = std::numeric_limits<BitsOf<A>>::max();
    const int64_t begin = boxes.first_block[leaf] * kLeafPad, end = boxes.first_block[leaf + 1] * kLeafPad;
    for (int64_t i = begin; i < end; ++i) {
      const bool real = i - begin < count;
      const Point<A> point = real ? from[i - begin] : Point<A>{{0, 0, 0}, std::numeric_limits<BitsOf<A>>::max()};
      x[i] = point.c[0];
      y[i] = point.c[1];
      z[i] = point.c[2];
      tree.id[i] = point.id;
      distance[i] = real ? first_distance(x[i], y[i], z[i], min_sq_norm) : kPadding<A>;
      if (!real) continue;
      if (bits_of(distance[i]) > bits_of(most) || (bits_of(distance[i]) == bits_of(most) && point.id < id)) {
        most = distance[i];
        id = point.id;
      }
    }
    node.most[child] = bits_of(most);
    node.id[child] = id;
  };
  const auto summarize = [](const Node<A>& node, Node<A>& parent, int child) {
    best_of<A, 1>(node.most, node.id, kFan, parent.most[child], parent.id[child]);
  };
  Node<A> empty{};  // never visited, never picked
  std::fill(empty.most, empty.most + kFan, bits_of(kPadding<A>));
  std::fill(empty.id, empty.id + kFan, std::numeric_limits<BitsOf<A>>::max());
  tree.boxes = build_box_tree(points, n, empty, allocate, fill, summarize);
  return tree;
}

// The children of nodes `which` whose box is nearer to c than their largest distance; no other can change.
template <class A, int W>
POINTPEFT_INLINE int64_t children_near(const Node<A>* nodes, const int32_t* which, int64_t count, const A* c,
                                       int32_t* out) {
  typedef A Vector __attribute__((vector_size(W * sizeof(A))));
  typedef BitsOf<A> Bits __attribute__((vector_size(W * sizeof(A))));
  int64_t found = 0;
  for (int64_t g = 0; g < count; ++g) {
    const Node<A>& node = nodes[which[g]];
    BitsOf<A> near[kFan];
    for (int l = 0; l < kFan; l += W) {
      Vector step[3], most;
      for (int a = 0; a < 3; ++a) {
        Vector low, high;
        std::memcpy(&low, node.low[a] + l, sizeof(low));
        std::memcpy(&high, node.high[a] + l, sizeof(high));
        low -= c[a];
        high = c[a] - high;
        const Vector outside = low > high ? low : high;
        step[a] = outside > 0 ? outside : Vector{};
      }
      std::memcpy(&most, node.most + l, sizeof(most));
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
    const int64_t begin = tree.boxes.first_block[which[k]] * kLeafPad;
    const int64_t end = tree.boxes.first_block[which[k] + 1] * kLeafPad;
    for (int64_t i = begin; i < end; i += W) {
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
    Node<A>& node = tree.boxes.levels[0][which[k] / kFan];
    const int child = which[k] % kFan;
    best_of<A, W>(reinterpret_cast<const BitsOf<A>*>(distance + begin), tree.id.get() + begin, end - begin,
                  node.most[child], node.id[child]);
  }
}

// Brings nodes `which` of level `level` up to date with their children, the nodes of the level below.
template <class A, int W>
POINTPEFT_INLINE void refresh(Tree<A>& tree, int64_t level, const int32_t* which, int64_t count) {
  for (int64_t k = 0; k < count; ++k) {
    const Node<A>& children = tree.boxes.levels[level - 1][which[k]];
    Node<A>& node = tree.boxes.levels[level][which[k] / kFan];
    best_of<A, W>(children.most, children.id, kFan, node.most[which[k] % kFan], node.id[which[k] % kFan]);
  }
}

}  // namespace
}  // namespace pointpeft::furthest_point_sample
