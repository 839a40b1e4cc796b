// The passes of the adapters' bottleneck and output on the CPU. They are bound by memory, so each reads its rows once,
// writes once, and takes along GELU, dropout, the scale and the prompt's mean on the way. What dropout leaves out is
// decided by a hash of seed and index, computed again in the backward, so that no mask is kept. Sums over the rows are
// taken by parts of the rows and joined in order: the same bits whatever the number of threads.
#include "common/rows.h"
#include "gelu.h"

namespace pointpeft::adapter {
namespace {

struct Dropout {
  bool drops;
  uint32_t low, high;
  float probability;
};

template <class A>
POINTPEFT_INLINE A survivor(const Dropout& dropout, A scale, int64_t index) {
  return kept(dropout.low, dropout.high, static_cast<uint32_t>(index), dropout.probability) ? scale : A(0);
}

// h = s GELU(z) with dropout. `first` is the index of the row's first element.
template <bool kDrops, class T, class A>
POINTPEFT_INLINE void hidden_row(const T* __restrict z, A s, const Dropout dropout, A scale, int64_t first, int64_t r,
                                 T* __restrict h) {
  for (int64_t i = 0; i < r; ++i) {
    const A value = static_cast<A>(z[i]);
    const A factor = kDrops ? survivor(dropout, scale, first + i) : A(1);
    h[i] = static_cast<T>(gelu(value) * factor * s);
  }
}

// dz from back = g W_up, and the sum back · GELU(z) with dropout, which the gate's gradient needs.
template <bool kDrops, class T, class A>
POINTPEFT_INLINE void hidden_backward_row(const T* __restrict back, const T* __restrict z, A s, const Dropout dropout,
                                          A scale, int64_t first, int64_t r, T* __restrict dz, A* __restrict d_bias,
                                          A* sum) {
  A part[16] = {};
  for (int64_t begin = 0; begin < r; begin += 16) {
    const int64_t width = r - begin < 16 ? r - begin : 16;
    for (int64_t l = 0; l < width; ++l) {
      const int64_t i = begin + l;
      const A value = static_cast<A>(z[i]), from = static_cast<A>(back[i]);
      const A factor = kDrops ? survivor(dropout, scale, first + i) : A(1);
      A below, density;
      normal(value, below, density);
      const A h = value * below, slope = below + value * density;
      part[l] += from * h * factor;
      const A d = from * s * factor * slope;
      d_bias[i] += d;
      dz[i] = static_cast<T>(d);
    }
  }
  *sum = across(part);
}

// a += s b_up, and where the prompt is wanted, adds GELU(a) to its sums.
template <bool kPrompt, class T, class A>
POINTPEFT_INLINE void output_row(T* __restrict a, const A* __restrict up_bias, A s, int64_t c, A* __restrict sums) {
  for (int64_t i = 0; i < c; ++i) {
    const A value = static_cast<A>(a[i]) + s * up_bias[i];
    a[i] = static_cast<T>(value);
    if (kPrompt) sums[i] += gelu(value);
  }
}

// The end of a block: out = x + (γ z + β) + (a + s b_up), without x where there is none; GELU of the last bracket is
// added to the prompt's sums.
template <class T, class U, class A>
POINTPEFT_INLINE void closing_row(const U* __restrict a, const A* __restrict up_bias, A s, const U* __restrict z,
                                  const A* __restrict gamma, const A* __restrict beta, const T* __restrict x, int64_t c,
                                  T* __restrict out, A* __restrict sums) {
  for (int64_t i = 0; i < c; ++i) {
    const A value = static_cast<A>(a[i]) + s * up_bias[i];
    sums[i] += gelu(value);
    out[i] = static_cast<T>((x == nullptr ? A(0) : static_cast<A>(x[i])) + (gamma[i] * static_cast<A>(z[i]) + beta[i]) +
                            value);
  }
}

// The gradient at a, that of the prompt included, in the place of a without its bias; its product with b_up; and s
// times it, summed.
template <bool kPrompt, class T, class A>
POINTPEFT_INLINE void gradient_row(const T* __restrict grad, T* __restrict a, const A* __restrict share,
                                   const A* __restrict up_bias, A s, int64_t c, A* __restrict d_up_bias, A* to_bias) {
  A part[16] = {};
  for (int64_t begin = 0; begin < c; begin += 16) {
    const int64_t width = c - begin < 16 ? c - begin : 16;
    for (int64_t l = 0; l < width; ++l) {
      const int64_t i = begin + l;
      A g = static_cast<A>(grad[i]);
      if (kPrompt) {
        g += share[i] * gelu_slope(static_cast<A>(a[i]) + s * up_bias[i]);
        a[i] = static_cast<T>(g);
      }
      d_up_bias[i] += s * g;
      part[l] += g * up_bias[i];
    }
  }
  *to_bias = across(part);
}

// ---- the passes over rows, compiled for each vector level ----

template <bool kDrops, class T, class A>
POINTPEFT_INLINE void hidden_pass(Rows<const T> z, const A* s, Dropout dropout, A scale, int64_t begin, int64_t end,
                                  int64_t r, Rows<T> h) {
  for (int64_t n = begin; n < end; ++n) hidden_row<kDrops>(z[n], s[n], dropout, scale, n * r, r, h[n]);
}

template <bool kDrops, class T, class A>
POINTPEFT_INLINE void hidden_backward_pass(Rows<const T> back, Rows<const T> z, const A* s, Dropout dropout, A scale,
                                           int64_t begin, int64_t end, int64_t r, Rows<T> dz, A* d_bias, A* sum) {
  for (int64_t n = begin; n < end; ++n)
    hidden_backward_row<kDrops>(back[n], z[n], s[n], dropout, scale, n * r, r, dz[n], d_bias, sum + n);
}

template <bool kPrompt, class T, class A>
POINTPEFT_INLINE void output_pass(Rows<T> a, const A* up_bias, const A* s, int64_t begin, int64_t end, int64_t c,
                                  A* sums) {
  for (int64_t n = begin; n < end; ++n) output_row<kPrompt>(a[n], up_bias, s[n], c, sums);
}

template <class T, class U, class A>
POINTPEFT_INLINE void closing_pass(Rows<const U> a, const A* up_bias, const A* s, Rows<const U> z, const A* gamma,
                                   const A* beta, Rows<const T> x, int64_t begin, int64_t end, int64_t c, Rows<T> out,
                                   A* sums) {
  for (int64_t n = begin; n < end; ++n)
    closing_row(a[n], up_bias, s[n], z[n], gamma, beta, x.data == nullptr ? nullptr : x[n], c, out[n], sums);
}

template <bool kPrompt, class T, class A>
POINTPEFT_INLINE void gradient_pass(Rows<const T> grad, Rows<T> a, const A* share, const A* up_bias, const A* s,
                                    int64_t begin, int64_t end, int64_t tokens, int64_t c, A* d_up_bias, A* to_bias) {
  for (int64_t n = begin; n < end; ++n)
    gradient_row<kPrompt>(grad[n], kPrompt ? a[n] : nullptr, kPrompt ? share + n / tokens * c : nullptr, up_bias, s[n],
                          c, d_up_bias, to_bias + n);
}

Dropout dropout_of(const std::optional<Tensor>& seed, double probability) {
  if (!seed) return {false, 0, 0, 0};
  require(seed->scalar_type() == ScalarType::Long && seed->numel() == 1, "seed must be one int64");
  const uint64_t value = static_cast<uint64_t>(*seed->const_data_ptr<int64_t>());
  return {true, static_cast<uint32_t>(value), static_cast<uint32_t>(value >> 32), static_cast<float>(probability)};
}

// What an element that dropout keeps is multiplied with.
template <class A>
A scale_of(double probability) {
  return A(1) / static_cast<A>(1 - probability);
}

// s ⊙ dropout(GELU(z)) of rows [N, R]; s is [N], in the type of sums.
Tensor adapter_hidden(const Tensor& z, const Tensor& s, const std::optional<Tensor>& seed, double probability) {
  require_dim("z", z, 2);
  const int64_t n = z.size(0), r = z.size(1);
  Tensor h = torch::stable::new_empty(z, {n, r}, z.scalar_type());
  dispatch_floating("z", z.scalar_type(), [&](auto type) {
    using T = decltype(type);
    using A = Accumulate<T>;
    const auto from = rows_of<T>("z", z, n, r);
    const auto to = rows_to<T>("h", h, n, r);
    const auto factor = channels_of<A>("s", s, n);
    const Dropout dropout = dropout_of(seed, probability);
    dispatch_level([&](auto level) {
      dispatch_flag(dropout.drops, [&](auto drops) {
        constexpr auto run = decltype(level)::template compiled<hidden_pass<decltype(drops)::value, T, A>>;
        over_rows(n, [&](int64_t begin, int64_t end) {
          run(from, factor.data(), dropout, scale_of<A>(probability), begin, end, r, to);
        });
      });
    });
  });
  return h;
}

// dz of rows [N, R], its sum over rows [R], and back · dropout(GELU(z)) [N], from back = g W_up.
std::tuple<Tensor, Tensor, Tensor> adapter_hidden_backward(const Tensor& back, const Tensor& z, const Tensor& s,
                                                           const std::optional<Tensor>& seed, double probability) {
  require_dim("z", z, 2);
  const int64_t n = z.size(0), r = z.size(1);
  Tensor dz = torch::stable::new_empty(z, {n, r}, z.scalar_type()), d_bias = dz, sum = dz;
  dispatch_floating("z", z.scalar_type(), [&](auto type) {
    using T = decltype(type);
    using A = Accumulate<T>;
    const auto g = rows_of<T>("back", back, n, r), from = rows_of<T>("z", z, n, r);
    const auto to = rows_to<T>("dz", dz, n, r);
    const auto factor = channels_of<A>("s", s, n);
    const Dropout dropout = dropout_of(seed, probability);
    std::vector<A> sums(parts_of(n) * r);
    d_bias = new_sums<A>(z, r), sum = new_sums<A>(z, n);
    A* of_row = static_cast<A*>(sum.mutable_data_ptr());
    dispatch_level([&](auto level) {
      dispatch_flag(dropout.drops, [&](auto drops) {
        constexpr auto run = decltype(level)::template compiled<hidden_backward_pass<decltype(drops)::value, T, A>>;
        over_parts(n, [&](int64_t part, int64_t begin, int64_t end) {
          run(g, from, factor.data(), dropout, scale_of<A>(probability), begin, end, r, to, sums.data() + part * r,
              of_row);
        });
      });
    });
    const std::vector<A> all = joined(sums, r);
    std::copy(all.begin(), all.end(), static_cast<A*>(d_bias.mutable_data_ptr()));
  });
  return {dz, d_bias, sum};
}

// The mean [clouds, c] of what body(first row, row behind the last, sums) adds to its sums, over each cloud's rows.
template <class T, class Body, class A = Accumulate<T>>
void mean_over_clouds(int64_t n, int64_t clouds, int64_t c, T* mean, Body&& body) {
  const int64_t tokens = n / clouds, parts = parts_of(tokens);
  std::vector<A> sums(clouds * parts * c);
  torch::stable::parallel_for(0, clouds * parts, 1, [&](int64_t begin, int64_t end) {
    for (int64_t unit = begin; unit < end; ++unit) {
      const int64_t first = unit / parts * tokens, part = unit % parts;
      body(first + part * tokens / parts, first + (part + 1) * tokens / parts, sums.data() + unit * c);
    }
  });
  for (int64_t cloud = 0; cloud < clouds; ++cloud)
    for (int64_t i = 0; i < c; ++i) {
      A total = 0;
      for (int64_t part = 0; part < parts; ++part) total += sums[(cloud * parts + part) * c + i];
      mean[cloud * c + i] = static_cast<T>(total / static_cast<A>(tokens));
    }
}

// Adds s ⊗ up_bias to a [N, C] in place; with clouds > 0 returns the mean over a cloud's tokens of GELU(a) [clouds, C].
Tensor adapter_output(Tensor a, const Tensor& up_bias, const Tensor& s, int64_t clouds) {
  require_dim("a", a, 2);
  const int64_t n = a.size(0), c = a.size(1);
  require(clouds == 0 || (clouds > 0 && n % clouds == 0), "clouds must divide N = ", n, ", got ", clouds);
  Tensor prompt = torch::stable::new_empty(a, {clouds, c}, a.scalar_type());
  dispatch_floating("a", a.scalar_type(), [&](auto type) {
    using T = decltype(type);
    using A = Accumulate<T>;
    const auto rows = rows_to<T>("a", a, n, c);
    const auto bias = channels_of<T>("up_bias", up_bias, c);
    const auto factor = channels_of<A>("s", s, n);
    dispatch_level([&](auto level) {
      if (clouds == 0) {
        constexpr auto run = decltype(level)::template compiled<output_pass<false, T, A>>;
        over_rows(n,
                  [&](int64_t begin, int64_t end) { run(rows, bias.data(), factor.data(), begin, end, c, nullptr); });
        return;
      }
      constexpr auto run = decltype(level)::template compiled<output_pass<true, T, A>>;
      mean_over_clouds(
          n, clouds, c, static_cast<T*>(prompt.mutable_data_ptr()),
          [&](int64_t begin, int64_t end, A* sums) { run(rows, bias.data(), factor.data(), begin, end, c, sums); });
    });
  });
  return prompt;
}

// out = x + (γ z + β) + (a + s ⊗ up_bias) of rows [N, C], x and out perhaps of a longer type; x None for zero. Returns
// the mean over a cloud's tokens of GELU(a + s ⊗ up_bias) [clouds, C].
Tensor adapter_closing(const Tensor& a, const Tensor& up_bias, const Tensor& s, const Tensor& z, const Tensor& gamma,
                       const Tensor& beta, const std::optional<Tensor>& x, int64_t clouds, Tensor out) {
  require_dim("a", a, 2);
  const int64_t n = a.size(0), c = a.size(1);
  require(clouds > 0 && n % clouds == 0, "clouds must divide N = ", n, ", got ", clouds);
  Tensor prompt = torch::stable::new_empty(a, {clouds, c}, a.scalar_type());
  dispatch_residual("out", out.scalar_type(), "a", a.scalar_type(), [&](auto type, auto shorter) {
    using T = decltype(type);
    using U = decltype(shorter);
    using A = Accumulate<U>;
    require(z.scalar_type() == a.scalar_type(), "z must be of the type of a");
    require(!x || x->scalar_type() == out.scalar_type(), "x must be of the type of out");
    const auto rows = rows_of<U>("a", a, n, c), mapped = rows_of<U>("z", z, n, c);
    const auto stream = x ? rows_of<T>("x", *x, n, c) : Rows<const T>{nullptr, 0};
    const auto to = rows_to<T>("out", out, n, c);
    const auto bias = channels_of<U>("up_bias", up_bias, c), scale = channels_of<U>("gamma", gamma, c),
               shift = channels_of<U>("beta", beta, c);
    const auto factor = channels_of<A>("s", s, n);
    dispatch_level([&](auto level) {
      constexpr auto run = decltype(level)::template compiled<closing_pass<T, U, A>>;
      mean_over_clouds(
          n, clouds, c, static_cast<U*>(prompt.mutable_data_ptr()), [&](int64_t begin, int64_t end, A* sums) {
            run(rows, bias.data(), factor.data(), mapped, scale.data(), shift.data(), stream, begin, end, c, to, sums);
          });
    });
  });
  return prompt;
}

// Sum of s ⊙ g [C] and g · up_bias [N], where g is grad, or with grad_prompt [clouds, C] grad and the prompt's gradient
// at a + s ⊗ up_bias; that g is then left in the place of a [N, C].
std::tuple<Tensor, Tensor> adapter_gradient(const Tensor& grad, const std::optional<Tensor>& grad_prompt, Tensor a,
                                            const Tensor& up_bias, const Tensor& s) {
  require_dim("grad", grad, 2);
  if (grad_prompt) require_dim("grad_prompt", *grad_prompt, 2);
  const int64_t n = grad.size(0), c = grad.size(1), clouds = grad_prompt ? grad_prompt->size(0) : 1;
  require(clouds > 0 ? n % clouds == 0 : n == 0, "grad_prompt must have a divisor of N = ", n, " clouds, got ", clouds);
  const int64_t tokens = std::max<int64_t>(1, n / std::max<int64_t>(1, clouds));
  Tensor d_up_bias = grad, to_bias = grad;
  dispatch_floating("grad", grad.scalar_type(), [&](auto type) {
    using T = decltype(type);
    using A = Accumulate<T>;
    const auto g = rows_of<T>("grad", grad, n, c);
    const auto rows = grad_prompt ? rows_to<T>("a", a, n, c) : Rows<T>{nullptr, 0};
    auto share = grad_prompt ? channels_of<T>("grad_prompt", *grad_prompt, clouds * c) : std::vector<A>();
    for (A& value : share) value /= static_cast<A>(tokens);
    const auto bias = channels_of<T>("up_bias", up_bias, c);
    const auto factor = channels_of<A>("s", s, n);
    std::vector<A> sums(parts_of(n) * c);
    d_up_bias = new_sums<A>(grad, c), to_bias = new_sums<A>(grad, n);
    A* of_row = static_cast<A*>(to_bias.mutable_data_ptr());
    dispatch_level([&](auto level) {
      dispatch_flag(grad_prompt.has_value(), [&](auto flag) {
        constexpr auto run = decltype(level)::template compiled<gradient_pass<decltype(flag)::value, T, A>>;
        over_parts(n, [&](int64_t part, int64_t begin, int64_t end) {
          run(g, rows, share.data(), bias.data(), factor.data(), begin, end, tokens, c, sums.data() + part * c, of_row);
        });
      });
    });
    const std::vector<A> all = joined(sums, c);
    std::copy(all.begin(), all.end(), static_cast<A*>(d_up_bias.mutable_data_ptr()));
  });
  return {d_up_bias, to_bias};
}

}  // namespace
}  // namespace pointpeft::adapter

STABLE_TORCH_LIBRARY_FRAGMENT(pointpeft, m) {
  m.def("_adapter_hidden(Tensor z, Tensor s, Tensor? seed, float probability) -> Tensor");
  m.def(
      "_adapter_hidden_backward(Tensor back, Tensor z, Tensor s, Tensor? seed, float probability) "
      "-> (Tensor, Tensor, Tensor)");
  m.def("_adapter_output(Tensor(a!) a, Tensor up_bias, Tensor s, int clouds) -> Tensor");
  m.def(
      "_adapter_closing(Tensor a, Tensor up_bias, Tensor s, Tensor z, Tensor gamma, Tensor beta, Tensor? x, int "
      "clouds, "
      "Tensor(a!) out) -> Tensor");
  m.def(
      "_adapter_gradient(Tensor grad, Tensor? grad_prompt, Tensor(a!) a, Tensor up_bias, Tensor s) "
      "-> (Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(pointpeft, CPU, m) {
  m.impl("_adapter_hidden", TORCH_BOX(&pointpeft::adapter::adapter_hidden));
  m.impl("_adapter_hidden_backward", TORCH_BOX(&pointpeft::adapter::adapter_hidden_backward));
  m.impl("_adapter_output", TORCH_BOX(&pointpeft::adapter::adapter_output));
  m.impl("_adapter_closing", TORCH_BOX(&pointpeft::adapter::adapter_closing));
  m.impl("_adapter_gradient", TORCH_BOX(&pointpeft::adapter::adapter_gradient));
}
