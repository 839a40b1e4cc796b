// The passes of the mini-PointNet tokenizer on the CPU, between its products. The first layer has three inputs, so
// three multiplications a channel in a pass over the rows are faster than a product. The points of a patch are
// neighbouring rows, so what couples them, the maximum of each channel and a lower bound from the patch, walks over a
// few rows that are in the cache.
#include "common/rows.h"

namespace pointpeft::patch_embed {
namespace {

// As PyTorch's, NaN wins.
template <class A>
POINTPEFT_INLINE A larger(A a, A b) {
  return a > b || a != a ? a : b;
}

// relu(W p + b), W given as its three columns.
template <class T, class A>
POINTPEFT_INLINE void first_row(const T* __restrict p, const A* __restrict weight, const A* __restrict bias, int64_t h,
                                T* __restrict out) {
  const A x = static_cast<A>(p[0]), y = static_cast<A>(p[1]), z = static_cast<A>(p[2]);
  for (int64_t i = 0; i < h; ++i)
    out[i] = static_cast<T>(larger(x * weight[i] + y * weight[h + i] + z * weight[2 * h + i] + bias[i], A(0)));
}

// The maximum of each channel over the `size` rows of a patch.
template <class T, class A>
POINTPEFT_INLINE void largest_of_patch(Rows<const T> x, int64_t first, int64_t size, int64_t c, A* __restrict most,
                                       T* __restrict out) {
  for (int64_t i = 0; i < c; ++i) most[i] = static_cast<A>(x[first][i]);
  for (int64_t r = first + 1; r < first + size; ++r) {
    const T* __restrict row = x[r];
    for (int64_t i = 0; i < c; ++i) most[i] = larger(static_cast<A>(row[i]), most[i]);
  }
  for (int64_t i = 0; i < c; ++i) out[i] = static_cast<T>(most[i]);
}

// x = max(x, -shift) in every row of a patch.
template <class T, class A>
POINTPEFT_INLINE void clamp_patch(Rows<T> x, int64_t first, int64_t size, int64_t c, const T* __restrict shift,
                                  A* __restrict least) {
  for (int64_t i = 0; i < c; ++i) least[i] = -static_cast<A>(shift[i]);
  for (int64_t r = first; r < first + size; ++r) {
    T* __restrict row = x[r];
    for (int64_t i = 0; i < c; ++i) row[i] = static_cast<T>(larger(static_cast<A>(row[i]), least[i]));
  }
}

// ---- the passes over rows, or over the patches that they belong to, compiled for each vector level ----

template <class T, class A>
POINTPEFT_INLINE void first_pass(Rows<const T> p, const A* weight, const A* bias, int64_t begin, int64_t end, int64_t h,
                                 Rows<T> out) {
  for (int64_t r = begin; r < end; ++r) first_row(p[r], weight, bias, h, out[r]);
}

template <class T, class A>
POINTPEFT_INLINE void largest_pass(Rows<const T> x, int64_t begin, int64_t end, int64_t size, int64_t c, A* most,
                                   Rows<T> out) {
  for (int64_t g = begin; g < end; ++g) largest_of_patch(x, g * size, size, c, most, out[g]);
}

template <class T, class A>
POINTPEFT_INLINE void clamp_pass(Rows<T> x, int64_t begin, int64_t end, int64_t size, int64_t c, Rows<const T> shift,
                                 A* least) {
  for (int64_t g = begin; g < end; ++g) clamp_patch(x, g * size, size, c, shift[g], least);
}

void patch_first_layer(const Tensor& points, const Tensor& weight, const Tensor& bias, Tensor out) {
  require_dim("points", points, 2);
  require_dim("weight", weight, 2);
  const int64_t n = points.size(0), h = weight.size(0);
  dispatch_floating("points", points.scalar_type(), [&](auto type) {
    using T = decltype(type);
    using A = Accumulate<T>;
    const auto from = rows_of<T>("points", points, n, 3);
    const auto to = rows_to<T>("out", out, n, h);
    const auto by_row = channels_of<T>("weight", weight, 3 * h), shift = channels_of<T>("bias", bias, h);
    std::vector<A> columns(3 * h);
    for (int64_t i = 0; i < h; ++i)
      for (int64_t a = 0; a < 3; ++a) columns[a * h + i] = by_row[3 * i + a];
    dispatch_level([&](auto level) {
      constexpr auto run = decltype(level)::template compiled<first_pass<T, A>>;
      over_rows(n, [&](int64_t begin, int64_t end) { run(from, columns.data(), shift.data(), begin, end, h, to); });
    });
  });
}

// How many patches of `size` rows there are.
int64_t patches_of(const Tensor& x, int64_t size) {
  require_dim("x", x, 2);
  require(size > 0 && x.size(0) % size == 0, "size must divide the rows of x, got ", size, " and ", x.size(0));
  return x.size(0) / size;
}

void patch_max(const Tensor& x, int64_t size, Tensor out) {
  const int64_t groups = patches_of(x, size), c = x.size(1);
  dispatch_floating("x", x.scalar_type(), [&](auto type) {
    using T = decltype(type);
    const auto from = rows_of<T>("x", x, groups * size, c);
    const auto to = rows_to<T>("out", out, groups, c);
    dispatch_level([&](auto level) {
      constexpr auto run = decltype(level)::template compiled<largest_pass<T, Accumulate<T>>>;
      over_rows(groups, [&](int64_t begin, int64_t end) {
        std::vector<Accumulate<T>> most(c);
        run(from, begin, end, size, c, most.data(), to);
      });
    });
  });
}

void patch_clamp(Tensor x, int64_t size, const Tensor& shift) {
  const int64_t groups = patches_of(x, size), c = x.size(1);
  dispatch_floating("x", x.scalar_type(), [&](auto type) {
    using T = decltype(type);
    const auto to = rows_to<T>("x", x, groups * size, c);
    const auto by_patch = rows_of<T>("shift", shift, groups, c);
    dispatch_level([&](auto level) {
      constexpr auto run = decltype(level)::template compiled<clamp_pass<T, Accumulate<T>>>;
      over_rows(groups, [&](int64_t begin, int64_t end) {
        std::vector<Accumulate<T>> least(c);
        run(to, begin, end, size, c, by_patch, least.data());
      });
    });
  });
}

}  // namespace
}  // namespace pointpeft::patch_embed

STABLE_TORCH_LIBRARY_FRAGMENT(pointpeft, m) {
  m.def("_patch_first_layer(Tensor points, Tensor weight, Tensor bias, Tensor(a!) out) -> ()");
  m.def("_patch_max(Tensor x, int size, Tensor(a!) out) -> ()");
  m.def("_patch_clamp(Tensor(a!) x, int size, Tensor shift) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(pointpeft, CPU, m) {
  m.impl("_patch_first_layer", TORCH_BOX(&pointpeft::patch_embed::patch_first_layer));
  m.impl("_patch_max", TORCH_BOX(&pointpeft::patch_embed::patch_max));
  m.impl("_patch_clamp", TORCH_BOX(&pointpeft::patch_embed::patch_clamp));
}
