// A tree of boxes over a large cloud, for searches that must give exactly what a look at every point gives. The points
// are split along the widest axis again and again, as in a k-d tree, into leaves of at most 64; sixteen neighbouring
// leaves share a node, sixteen nodes the next one, and a node holds the bounding boxes of its children side by side, so
// that one pass of vectors asks all of them. A search computes the distance to a box with the roundings of that to a
// point, step by step, and rounding keeps order: it never exceeds the distance to a point inside, so that leaving a box
// out changes nothing.
//
// An operation keeps beside the boxes what its search needs of each child, in a `Node` derived from Boxes<A>, and the
// points of leaf l in blocks of 16 from first_block[l] on, in a layout of its own.
#pragma once

#include "load.h"

namespace pointpeft {
namespace {

constexpr int kFan = 16;          // children of a node
constexpr int64_t kLeaf = 64;     // the most points of a leaf
constexpr int64_t kLeafPad = 16;  // points of a block; leaves begin with one
constexpr int kMostLevels = 9;    // 16^8 leaves are more than there are points

struct Range {
  int64_t begin, end;
  int64_t size() const { return end - begin; }
};

// Moves points with c[axis] <= pivot to the front; both sides keep their order. Returns how many they are.
template <class A>
int64_t partition(Point<A>* points, int64_t n, Point<A>* spare, int axis, A pivot) {
  int64_t left = 0, right = 0;
  for (int64_t i = 0; i < n; ++i) {  // without a branch, which would be mispredicted half of the time
    const Point<A> point = points[i];
    const bool small = point.c[axis] <= pivot;
    points[left] = point;
    spare[right] = point;
    left += small;
    right += !small;
  }
  std::copy(spare, spare + right, points + left);
  return left;
}

// Splits at about the median of the widest axis, both estimated from a few points. Returns the size of the left side,
// never 0 or n.
template <class A>
int64_t split(Point<A>* points, int64_t n, Point<A>* spare) {
  constexpr int kSample = 31;
  A sample[3][kSample];
  const int count = static_cast<int>(std::min<int64_t>(n > 1024 ? kSample : kSample / 2, n));
  int axis = 0;
  A widest = -1;
  for (int c = 0; c < 3; ++c) {
    for (int s = 0; s < count; ++s) sample[c][s] = points[s * n / count].c[c];
    const auto [low, high] = std::minmax_element(sample[c], sample[c] + count);
    if (*high - *low > widest) {
      widest = *high - *low;
      axis = c;
    }
  }
  std::nth_element(sample[axis], sample[axis] + (count - 1) / 2, sample[axis] + count);
  const int64_t left = partition(points, n, spare, axis, sample[axis][(count - 1) / 2]);
  if (left < n) return left;
  // Most of the sample was the largest value there is: the middle of the box has points on both sides.
  for (int c = 0; c < 3; ++c) {
    A low = points[0].c[c], high = low;
    for (int64_t i = 1; i < n; ++i) {
      low = std::min(low, points[i].c[c]);
      high = std::max(high, points[i].c[c]);
    }
    const A middle = low / 2 + high / 2;
    if (low < high) return partition(points, n, spare, c, middle < high ? std::max(low, middle) : low);
  }
  return n / 2;  // all points coincide
}

template <class A>
void split_part(Point<A>* points, Range range, Point<A>* spare, int64_t most, std::vector<Range>& leaves) {
  std::vector<Range> waiting{range};
  while (!waiting.empty()) {
    const Range r = waiting.back();
    waiting.pop_back();
    if (r.end - r.begin <= most) {
      leaves.push_back(r);
    } else {
      const int64_t middle = r.begin + split(points + r.begin, r.end - r.begin, spare + r.begin);
      waiting.push_back({middle, r.end});
      waiting.push_back({r.begin, middle});
    }
  }
}

// Reorders `points` so that each of the ranges returned, one after another, is a leaf of `most` points or fewer; inside
// a leaf, and where points coincide across leaves too, they keep their order.
template <class A>
std::vector<Range> split_into_leaves(Point<A>* points, int64_t n, int64_t most) {
  std::unique_ptr<Point<A>[]> spare(new Point<A>[n]);
  // A few splits one after another, so that the threads have parts to work on; inside a parallel region one suffices.
  std::vector<Range> parts{{0, n}};
  const int64_t threads = torch::stable::get_num_threads();
  while (threads > 1 && static_cast<int64_t>(parts.size()) < 4 * threads) {
    std::vector<Range> halves;
    for (const Range r : parts) {
      const int64_t middle =
          r.end - r.begin > most ? r.begin + split(points + r.begin, r.end - r.begin, spare.get()) : r.end;
      halves.push_back({r.begin, middle});
      halves.push_back({middle, r.end});
    }
    parts.swap(halves);
  }
  std::vector<std::vector<Range>> leaves(parts.size());
  torch::stable::parallel_for(0, parts.size(), 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i)
      if (parts[i].begin < parts[i].end) split_part(points, parts[i], spare.get(), most, leaves[i]);
  });
  std::vector<Range> all;
  for (const auto& some : leaves) all.insert(all.end(), some.begin(), some.end());
  return all;
}

// The boxes of a node's children; what lies behind the last child is an empty box, infinitely far from everything.
template <class A>
struct alignas(64) Boxes {
  A low[3][kFan], high[3][kFan];
};

template <class Node>
struct BoxTree {
  std::vector<int64_t> first_block;       // of each leaf, and of the end
  std::vector<std::vector<Node>> levels;  // level 0 describes leaves, the last one is a single node
  int64_t num_leaves() const { return static_cast<int64_t>(first_block.size()) - 1; }
  int64_t num_blocks() const { return first_block.back(); }
};

// Nodes for children that do not exist yet; `empty` says what else they hold.
template <class Node>
std::vector<Node> nodes_for(int64_t children, const Node& other) {
  Node empty = other;
  using A = std::remove_reference_t<decltype(empty.low[0][0])>;
  for (int c = 0; c < 3; ++c) {
    std::fill_n(empty.low[c], kFan, std::numeric_limits<A>::infinity());
    std::fill_n(empty.high[c], kFan, -std::numeric_limits<A>::infinity());
  }
  return std::vector<Node>((children + kFan - 1) / kFan, empty);
}

// The tree over `points`, which it reorders. allocate(tree) is called once the blocks are counted. Then
// fill(tree, l, points, count, node, child) copies leaf l, whose points are in the order of the cloud, to where the
// operation has it, and sets what the node holds of this child; summarize(node, parent, child) sets what the parent of
// a node holds of it.
template <class Node, class A, class Allocate, class Fill, class Summarize>
BoxTree<Node> build_box_tree(Point<A>* points, int64_t n, const Node& empty, Allocate&& allocate, Fill&& fill,
                             Summarize&& summarize) {
  const std::vector<Range> leaves = split_into_leaves(points, n, kLeaf);
  BoxTree<Node> tree;
  tree.first_block.push_back(0);
  for (const Range leaf : leaves)
    tree.first_block.push_back(tree.first_block.back() + (leaf.size() + kLeafPad - 1) / kLeafPad);
  allocate(tree);
  tree.levels.push_back(nodes_for(tree.num_leaves(), empty));
  torch::stable::parallel_for(0, tree.num_leaves(), 256, [&](int64_t begin, int64_t end) {
    for (int64_t l = begin; l < end; ++l) {
      Node& node = tree.levels[0][l / kFan];
      const int child = static_cast<int>(l % kFan);
      const Point<A>* from = points + leaves[l].begin;
      const int64_t count = leaves[l].size();
      typedef A Whole __attribute__((vector_size(sizeof(Point<A>))));  // a point with its index, which nobody looks at
      Whole low[2], high[2];
      std::memcpy(&low[0], from, sizeof(Whole));
      low[1] = high[0] = high[1] = low[0];
      const auto enclose = [&](int64_t i, int which) {
        Whole point;
        std::memcpy(&point, from + i, sizeof(Whole));
        low[which] = point < low[which] ? point : low[which];
        high[which] = point > high[which] ? point : high[which];
      };
      for (int64_t i = 0; i + 1 < count; i += 2) enclose(i, 0), enclose(i + 1, 1);  // which do not wait for each other
      enclose(count - 1, 0);
      for (int c = 0; c < 3; ++c) {
        node.low[c][child] = std::min(low[0][c], low[1][c]);
        node.high[c][child] = std::max(high[0][c], high[1][c]);
      }
      fill(tree, l, from, count, node, child);
    }
  });
  while (tree.levels.back().size() > 1) {
    const std::vector<Node>& below = tree.levels.back();
    std::vector<Node> above = nodes_for(below.size(), empty);
    for (size_t i = 0; i < below.size(); ++i) {
      Node& parent = above[i / kFan];
      const int child = static_cast<int>(i % kFan);
      for (int c = 0; c < 3; ++c) {
        parent.low[c][child] = *std::min_element(below[i].low[c], below[i].low[c] + kFan);
        parent.high[c][child] = *std::max_element(below[i].high[c], below[i].high[c] + kFan);
      }
      summarize(below[i], parent, child);
    }
    tree.levels.push_back(std::move(above));
  }
  return tree;
}

}  // namespace
}  // namespace pointpeft
