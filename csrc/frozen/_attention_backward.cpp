// The backward of self-attention on the CPU: one head of one cloud at a time. Shares are not kept by the forward but
// computed again, from the scores and the log of their sum, as memory is slower than an exponential; the gradient of
// the scores needs besides one number a token, the sum of gradient times result. Scale and shift of the queries, keys
// and values, and their gradients, belong to the passes that pack and unpack.
#include "attention_products.h"

namespace pointpeft::attention {
namespace {

// What a head works in. `padded` tokens and channels are multiples of 16; what lies behind the last is zero.
template <class A>
struct Scratch {
  int64_t tokens, width, padded, channels;
  Aligned<A> memory;
  A *q, *k, *keys, *values,
      *grad;           // rows of queries (scaled) and keys; keys and values transposed; the gradient's rows
  A *shares, *slopes;  // [tokens, padded]: of a query (row) among the keys, and the gradient of its scores
  A *dy, *inner;       // rows of a result; the sum of gradient times result of each token
  Scratch(int64_t tokens, int64_t width, int rows)
      : tokens(tokens), width(width), padded((tokens + 15) / 16 * 16), channels((width + 15) / 16 * 16) {
    const int64_t all = padded + rows, flat = all * channels, wide = (width + rows) * padded, square = all * padded;
    const int64_t count = 3 * flat + 2 * wide + 2 * square + rows * channels + padded;
    memory = aligned_array<A>(count);
    std::fill(memory.get(), memory.get() + count, A(0));
    q = memory.get(), k = q + flat, grad = k + flat, keys = grad + flat, values = keys + wide;
    shares = values + wide, slopes = shares + square, dy = slopes + square, inner = dy + rows * channels;
  }
};

// Rows of the gradient, and of each the sum of its products with the result.
template <class T, class A>
POINTPEFT_INLINE void pack_gradient(const T* __restrict grad, const T* __restrict out, int64_t d, A* __restrict row,
                                    A* inner) {
  A part[16] = {};
  for (int64_t i = 0; i < d; ++i) row[i] = static_cast<A>(grad[i]);
  const int64_t whole = d / 16 * 16;
  for (int64_t i = 0; i < whole; i += 16)
    for (int l = 0; l < 16; ++l) part[l] += row[i + l] * static_cast<A>(out[i + l]);
  for (int64_t i = whole; i < d; ++i) part[i - whole] += row[i] * static_cast<A>(out[i]);
  *inner = across(part);
}

template <int W, bool kAdapted, class T, class A>
POINTPEFT_INLINE void pack(const Head<T, A>& head, const T* grad, const T* out, int64_t stride, A scale, T* dz,
                           Scratch<A>& to) {
  const int64_t third = head.third, step = kAdapted ? third : 0, d = to.width, channels = to.channels;
  const A *gamma = head.gamma, *beta = head.beta;
  for (int64_t n = 0; n < to.tokens; ++n) {
    const T* from = head.data + n * head.stride;
    if (n + kAhead < to.tokens) {
      prefetch(from, head.stride, third, 3, d);
      prefetch(grad + n * stride, stride, 0, 1, d);
      prefetch(out + n * stride, stride, 0, 1, d);
      prefetch(dz + n * 3 * third, 3 * third, third, 3, d);  // is written much later, but as slowly as read
    }
    pack_row<kAdapted>(from, gamma, beta, scale, d, to.q + n * channels);
    pack_row<kAdapted>(from + third, gamma + step, beta + step, A(1), d, to.k + n * channels);
    pack_row<kAdapted>(from + 2 * third, gamma + 2 * step, beta + 2 * step, A(1), d, to.grad + n * channels);
  }
  transpose<A, W>(to.k, channels, to.padded, d, to.keys, to.padded);
  transpose<A, W>(to.grad, channels, to.padded, d, to.values, to.padded);
  for (int64_t n = 0; n < to.tokens; ++n)
    pack_gradient(grad + n * stride, out + n * stride, d, to.grad + n * channels, to.inner + n);
}

// From dy, the gradient at γ z + β: that of z, and what this row adds to those of γ and β.
template <bool kAdapted, class T, class A>
POINTPEFT_INLINE void unpack_row(const A* __restrict dy, A scale, const T* __restrict z, const A* __restrict gamma,
                                 int64_t d, T* __restrict dz, A* __restrict d_gamma, A* __restrict d_beta) {
  for (int64_t i = 0; i < d; ++i) {
    const A g = dy[i] * scale;
    if (kAdapted) {
      d_gamma[i] += g * static_cast<A>(z[i]);
      d_beta[i] += g;
    }
    dz[i] = static_cast<T>(kAdapted ? gamma[i] * g : g);
  }
}

template <class Level, bool kAdapted, class T, class A>
POINTPEFT_INLINE void differentiate(const Head<T, A>& head, const T* grad, const T* out, int64_t stride, const A* lse,
                                    Scratch<A>& s, T* dz, A* d_gamma, A* d_beta) {
  constexpr int W = kLanesOf<Level, A>, kRows = TileShape<Level>::kRows, kMost = TileShape<Level>::kVectors;
  const int64_t d = s.width, padded = s.padded, channels = s.channels, tokens = s.tokens, third = head.third;
  const A scale = A(1) / std::sqrt(static_cast<A>(d));
  pack<W, kAdapted>(head, grad, out, stride, scale, dz, s);
  const auto unpack = [&](int64_t which, int64_t first, A factor) {
    const int64_t rows = std::min<int64_t>(kRows, tokens - first), at = which * third;
    for (int64_t r = 0; r < rows; ++r)
      unpack_row<kAdapted>(s.dy + r * channels, factor, head.data + (first + r) * head.stride + at,
                           kAdapted ? head.gamma + at : nullptr, d, dz + (first + r) * 3 * third + at,
                           kAdapted ? d_gamma + at : nullptr, kAdapted ? d_beta + at : nullptr);
  };
  for (int64_t first = 0; first < tokens; first += kRows) {
    A *share = s.shares + first * padded, *slope = s.slopes + first * padded;
    product<A, W, kRows, kMost>({s.q + first * channels, channels, 1}, s.keys, padded, d, padded / W, share, padded);
    product<A, W, kRows, kMost>({s.grad + first * channels, channels, 1}, s.values, padded, d, padded / W, slope,
                                padded);
    const int64_t rows = std::min<int64_t>(kRows, tokens - first);
    for (int64_t r = 0; r < rows; ++r) {
      A* __restrict p = share + r * padded, * __restrict ds = slope + r * padded;
      const A total = lse[first + r], inner = s.inner[first + r];
      for (int64_t i = 0; i < padded; ++i) {
        p[i] = exponential(p[i] - total);
        ds[i] = p[i] * (ds[i] - inner);
      }
    }
    product<A, W, kRows, kMost>({slope, padded, 1}, s.k, channels, tokens, channels / W, s.dy, channels);
    unpack(0, first, scale);
  }
  for (int64_t first = 0; first < tokens; first += kRows) {
    product<A, W, kRows, kMost>({s.slopes + first, 1, padded}, s.q, channels, tokens, channels / W, s.dy, channels);
    unpack(1, first, A(1));
    product<A, W, kRows, kMost>({s.shares + first, 1, padded}, s.grad, channels, tokens, channels / W, s.dy, channels);
    unpack(2, first, A(1));
  }
}

// dz goes into `dz` (B, T, 3C); returns the gradients of γ and β (3C), float32 or float64, empty without them.
std::tuple<Tensor, Tensor> attention_backward(const Tensor& grad, const Tensor& qkv, const std::optional<Tensor>& gamma,
                                              const std::optional<Tensor>& beta, const Tensor& out, const Tensor& lse,
                                              int64_t heads, Tensor dz) {
  require_heads(qkv, heads, gamma, beta);
  const int64_t batch = qkv.size(0), tokens = qkv.size(1), width = qkv.size(2);
  const int64_t c = width / 3, d = c / heads;
  for (const auto& [name, tensor] : {std::pair{"grad", &grad}, std::pair{"out", &out}})
    require(tensor->dim() == 3 && tensor->size(0) == batch && tensor->size(1) == tokens && tensor->size(2) == c &&
                tensor->is_contiguous() && tensor->scalar_type() == qkv.scalar_type(),
            name, " must be contiguous, of the type of qkv and of a third of its channels");
  require_shape("dz", dz, {batch, tokens, width});
  require_dtype("dz", dz, qkv.scalar_type());
  require(dz.is_contiguous(), "dz must be contiguous");
  require_shape("lse", lse, {batch, heads, tokens});
  require_dtype("lse", lse, accumulate_dtype(qkv.scalar_type()));
  require(lse.is_contiguous(), "lse must be contiguous");
  Tensor d_gamma = lse, d_beta = lse;
  dispatch_floating("qkv", qkv.scalar_type(), [&](auto type) {
    using T = decltype(type);
    using A = Accumulate<T>;
    const bool adapted = gamma.has_value();
    const auto scale = gamma ? channels_of<T>("gamma", *gamma, width) : std::vector<A>();
    const auto shift = beta ? channels_of<T>("beta", *beta, width) : std::vector<A>();
    const T *from = static_cast<const T*>(qkv.const_data_ptr()), *g = static_cast<const T*>(grad.const_data_ptr()),
            *mixed = static_cast<const T*>(out.const_data_ptr());
    T* to = static_cast<T*>(dz.mutable_data_ptr());
    const A* facts = static_cast<const A*>(lse.const_data_ptr());
    const int64_t stride_b = qkv.stride(0), stride = qkv.stride(1), sums_width = adapted ? 2 * width : 0;
    std::vector<A> sums(std::max<int64_t>(1, batch) * sums_width);  // of a cloud: of γ, then of β
    dispatch_level([&](auto level) {
      using Level = decltype(level);
      dispatch_flag(adapted, [&](auto flag) {
        constexpr auto run = Level::template compiled<differentiate<Level, decltype(flag)::value, T, A>>;
        torch::stable::parallel_for(0, batch * heads, 1, [&](int64_t begin, int64_t end) {
          Scratch<A> scratch(tokens, d, TileShape<Level>::kRows);
          for (int64_t i = begin; i < end; ++i) {
            const int64_t b = i / heads, at = i % heads * d;
            const Head<T, A> head{from + b * stride_b + at, stride, c, scale.data() + at, shift.data() + at};
            A* sum = sums.data() + b * sums_width + at;
            run(head, g + b * tokens * c + at, mixed + b * tokens * c + at, c, facts + i * tokens, scratch,
                to + b * tokens * width + at, sum, sum + width);
          }
        });
      });
    });
    d_gamma = new_sums<A>(lse, sums_width / 2), d_beta = new_sums<A>(lse, sums_width / 2);
    if (!adapted) return;
    const std::vector<A> total = joined(sums, sums_width);
    std::copy(total.begin(), total.begin() + width, static_cast<A*>(d_gamma.mutable_data_ptr()));
    std::copy(total.begin() + width, total.end(), static_cast<A*>(d_beta.mutable_data_ptr()));
  });
  return {d_gamma, d_beta};
}

}  // namespace
}  // namespace pointpeft::attention

STABLE_TORCH_LIBRARY_FRAGMENT(pointpeft, m) {
  m.def(
      "_attention_backward(Tensor grad, Tensor qkv, Tensor? gamma, Tensor? beta, Tensor out, Tensor lse, int heads, "
      "Tensor(a!) dz) -> (Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(pointpeft, CPU, m) {
  m.impl("_attention_backward", TORCH_BOX(&pointpeft::attention::attention_backward));
}
