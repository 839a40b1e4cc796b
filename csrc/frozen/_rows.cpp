// The passes of scaled and shifted layers and of LayerNorm on the CPU. They are bound by memory, so each reads its rows
// once, writes once, and takes along on the way whatever else needs these rows: GELU, a gate, the sum with a residual.
// Sums over the rows, which gradients need, are taken by parts of the rows and joined in order: the same bits whatever
// the number of threads. Sums over the channels of a row are sixteen partial ones, the same at every vector level.
#include "common/rows.h"
#include "gelu.h"

namespace pointpeft::row_passes {
namespace {

// ---- γ x + β, with or without GELU ----

template <bool kGelu, class T, class A>
POINTPEFT_INLINE void forward_row(const T* __restrict x, const A* __restrict gamma, const A* __restrict beta, int64_t c,
                                  T* __restrict out) {
  for (int64_t i = 0; i < c; ++i) {
    const A y = gamma[i] * static_cast<A>(x[i]) + beta[i];
    out[i] = static_cast<T>(kGelu ? gelu(y) : y);
  }
}

// dx = γ dy, with dy = grad or GELU'(γ x + β) grad. `dx` may be `grad`: no element is read after it was written.
template <bool kGelu, class T, class A>
POINTPEFT_INLINE void backward_row(const T* grad, const T* __restrict x, const A* __restrict gamma,
                                   const A* __restrict beta, int64_t c, T* dx, A* __restrict d_gamma,
                                   A* __restrict d_beta) {
#if defined(__clang__)
#pragma clang loop vectorize(assume_safety)
#else
#pragma GCC ivdep
#endif
  for (int64_t i = 0; i < c; ++i) {
    const A value = static_cast<A>(x[i]);
    A dy = static_cast<A>(grad[i]);
    if (kGelu) dy *= gelu_slope(gamma[i] * value + beta[i]);
    d_gamma[i] += dy * value;
    d_beta[i] += dy;
    dx[i] = static_cast<T>(dy * gamma[i]);
  }
}

// ---- LayerNorm ----

template <class T, class U, class A>
POINTPEFT_INLINE void norm_row(const T* __restrict x, const A* __restrict weight, const A* __restrict bias,
                               const A* __restrict gate, int64_t c, A eps, U* __restrict out, A* stats, A* gated) {
  A part[16] = {}, mean, rstd;
  int64_t i = 0;
  for (; i + 16 <= c; i += 16)
    for (int64_t l = 0; l < 16; ++l) part[l] += static_cast<A>(x[i + l]);
  for (int64_t l = 0; i + l < c; ++l) part[l] += static_cast<A>(x[i + l]);
  mean = across(part) / static_cast<A>(c);
  for (int64_t l = 0; l < 16; ++l) part[l] = 0;
  for (i = 0; i + 16 <= c; i += 16)
    for (int64_t l = 0; l < 16; ++l) {
      const A d = static_cast<A>(x[i + l]) - mean;
      part[l] += d * d;
    }
  for (int64_t l = 0; i + l < c; ++l) {
    const A d = static_cast<A>(x[i + l]) - mean;
    part[l] += d * d;
  }
  rstd = A(1) / std::sqrt(across(part) / static_cast<A>(c) + eps);
  stats[0] = mean;
  stats[1] = rstd;
  for (i = 0; i < c; ++i) out[i] = static_cast<U>((static_cast<A>(x[i]) - mean) * rstd * weight[i] + bias[i]);
  if (gate == nullptr) return;
  for (int64_t l = 0; l < 16; ++l) part[l] = 0;
  for (i = 0; i + 16 <= c; i += 16)
    for (int64_t l = 0; l < 16; ++l) part[l] += static_cast<A>(out[i + l]) * gate[i + l];
  for (int64_t l = 0; i + l < c; ++l) part[l] += static_cast<A>(out[i + l]) * gate[i + l];
  *gated = across(part);
}

template <class T, class U>
POINTPEFT_INLINE void add_row(const T* __restrict x, const U* __restrict y, int64_t c, T* __restrict out) {
  using A = Accumulate<T>;
  for (int64_t i = 0; i < c; ++i) out[i] = static_cast<T>(static_cast<A>(x[i]) + static_cast<A>(y[i]));
}

// `d_gate` is the gradient of the gate w·u of this row, 0 without a gate. Sums: of du x̂, of du, and of d_gate x̂.
template <class T, class A>
POINTPEFT_INLINE void norm_backward_row(const T* __restrict grad, const T* __restrict x, const A* stats,
                                        const A* __restrict weight, const A* __restrict gate, A d_gate, int64_t c,
                                        T* __restrict dx, A* __restrict d_weight, A* __restrict d_bias,
                                        A* __restrict d_gate_weight, A* __restrict du) {
  const A mean = stats[0], rstd = stats[1];
  A inner[16] = {}, outer[16] = {};
  if (gate != nullptr) {
    for (int64_t i = 0; i < c; ++i) {
      du[i] = static_cast<A>(grad[i]) + d_gate * gate[i];
      d_gate_weight[i] += d_gate * ((static_cast<A>(x[i]) - mean) * rstd);
    }
  } else {
    for (int64_t i = 0; i < c; ++i) du[i] = static_cast<A>(grad[i]);
  }
  int64_t begin = 0;
  for (; begin + 16 <= c; begin += 16)
    for (int64_t l = 0; l < 16; ++l) {
      const int64_t i = begin + l;
      const A unit = (static_cast<A>(x[i]) - mean) * rstd, dn = du[i] * weight[i];
      d_weight[i] += du[i] * unit;
      d_bias[i] += du[i];
      inner[l] += dn;
      outer[l] += dn * unit;
    }
  for (int64_t l = 0; begin + l < c; ++l) {
    const int64_t i = begin + l;
    const A unit = (static_cast<A>(x[i]) - mean) * rstd, dn = du[i] * weight[i];
    d_weight[i] += du[i] * unit;
    d_bias[i] += du[i];
    inner[l] += dn;
    outer[l] += dn * unit;
  }
  const A a = across(inner) / static_cast<A>(c), b = across(outer) / static_cast<A>(c);
  for (int64_t i = 0; i < c; ++i) {
    const A unit = (static_cast<A>(x[i]) - mean) * rstd;
    dx[i] = static_cast<T>(rstd * (du[i] * weight[i] - a - unit * b));
  }
}

// ---- the passes over rows, compiled for each vector level ----

template <bool kGelu, class T, class A>
POINTPEFT_INLINE void forward_pass(Rows<const T> x, const A* gamma, const A* beta, int64_t begin, int64_t end,
                                   int64_t c, Rows<T> out) {
  for (int64_t r = begin; r < end; ++r) forward_row<kGelu>(x[r], gamma, beta, c, out[r]);
}

template <bool kGelu, class T, class A>
POINTPEFT_INLINE void backward_pass(Rows<const T> grad, Rows<const T> x, const A* gamma, const A* beta, int64_t begin,
                                    int64_t end, int64_t c, Rows<T> dx, A* sums) {
  for (int64_t r = begin; r < end; ++r) backward_row<kGelu>(grad[r], x[r], gamma, beta, c, dx[r], sums, sums + c);
}

template <class T, class A>
POINTPEFT_INLINE void norm_pass(Rows<const T> x, const A* weight, const A* bias, const A* gate, int64_t begin,
                                int64_t end, int64_t c, A eps, Rows<T> out, A* stats, A* gated) {
  for (int64_t r = begin; r < end; ++r) norm_row(x[r], weight, bias, gate, c, eps, out[r], stats + 2 * r, gated + r);
}

template <class T, class U, class A>
POINTPEFT_INLINE void add_norm_pass(Rows<const T> x, Rows<const U> y, const A* weight, const A* bias, int64_t begin,
                                    int64_t end, int64_t c, A eps, Rows<T> sum, Rows<U> out) {
  A stats[2];
  for (int64_t r = begin; r < end; ++r) {
    const T* row = x[r];
    if (y.data != nullptr) add_row(row, y[r], c, sum[r]), row = sum[r];
    norm_row(row, weight, bias, static_cast<const A*>(nullptr), c, eps, out[r], stats, stats);
  }
}

template <class T, class A>
POINTPEFT_INLINE void norm_backward_pass(Rows<const T> grad, Rows<const T> x, const A* stats, const A* weight,
                                         const A* gate, const A* d_gate, int64_t begin, int64_t end, int64_t c,
                                         Rows<T> dx, A* sums, A* du) {
  for (int64_t r = begin; r < end; ++r)
    norm_backward_row(grad[r], x[r], stats + 2 * r, weight, gate, gate ? d_gate[r] : A(0), c, dx[r], sums, sums + c,
                      sums + 2 * c, du);
}

void scale_shift_rows(const Tensor& x, const Tensor& gamma, const Tensor& beta, bool with_gelu, Tensor out) {
  require_dim("x", x, 2);
  const int64_t n = x.size(0), c = x.size(1);
  dispatch_floating("x", x.scalar_type(), [&](auto type) {
    using T = decltype(type);
    const auto from = rows_of<T>("x", x, n, c);
    const auto to = rows_to<T>("out", out, n, c);
    const auto scale = channels_of<T>("gamma", gamma, c), shift = channels_of<T>("beta", beta, c);
    dispatch_level([&](auto level) {
      dispatch_flag(with_gelu, [&](auto flag) {
        constexpr auto run = decltype(level)::template compiled<forward_pass<decltype(flag)::value, T, Accumulate<T>>>;
        over_rows(n, [&](int64_t begin, int64_t end) { run(from, scale.data(), shift.data(), begin, end, c, to); });
      });
    });
  });
}

std::tuple<Tensor, Tensor> scale_shift_rows_backward(const Tensor& grad, const Tensor& x, const Tensor& gamma,
                                                     const std::optional<Tensor>& beta, Tensor dx) {
  require_dim("x", x, 2);
  const int64_t n = x.size(0), c = x.size(1);
  Tensor d_gamma = x, d_beta = x;
  dispatch_floating("x", x.scalar_type(), [&](auto type) {
    using T = decltype(type);
    using A = Accumulate<T>;
    const auto g = rows_of<T>("grad", grad, n, c), from = rows_of<T>("x", x, n, c);
    const auto to = rows_to<T>("dx", dx, n, c);
    const auto scale = channels_of<T>("gamma", gamma, c);
    const auto shift = beta ? channels_of<T>("beta", *beta, c) : scale;
    std::vector<A> sums(parts_of(n) * 2 * c);
    dispatch_level([&](auto level) {
      dispatch_flag(beta.has_value(), [&](auto flag) {
        constexpr auto run = decltype(level)::template compiled<backward_pass<decltype(flag)::value, T, A>>;
        over_parts(n, [&](int64_t part, int64_t begin, int64_t end) {
          run(g, from, scale.data(), shift.data(), begin, end, c, to, sums.data() + part * 2 * c);
        });
      });
    });
    const std::vector<A> total = joined(sums, 2 * c);
    d_gamma = new_sums<A>(x, c), d_beta = new_sums<A>(x, c);
    std::copy(total.begin(), total.begin() + c, static_cast<A*>(d_gamma.mutable_data_ptr()));
    std::copy(total.begin() + c, total.end(), static_cast<A*>(d_beta.mutable_data_ptr()));
  });
  return {d_gamma, d_beta};
}

// u = LN(x) of rows [N, C], mean and 1 / deviation [N, 2] (float32 or float64), and with a gate its w·u [N].
std::tuple<Tensor, Tensor, Tensor> norm_rows(const Tensor& x, const Tensor& weight, const Tensor& bias,
                                             const std::optional<Tensor>& gate, double eps) {
  require_dim("x", x, 2);
  const int64_t n = x.size(0), c = x.size(1);
  Tensor out = torch::stable::new_empty(x, {n, c}, x.scalar_type()), stats = out, gated = out;
  dispatch_floating("x", x.scalar_type(), [&](auto type) {
    using T = decltype(type);
    using A = Accumulate<T>;
    const auto from = rows_of<T>("x", x, n, c);
    const auto to = rows_to<T>("out", out, n, c);
    const auto w = channels_of<T>("weight", weight, c), b = channels_of<T>("bias", bias, c);
    const auto g = gate ? channels_of<T>("gate", *gate, c) : std::vector<A>();
    stats = new_sums<A>(x, 2 * n), gated = new_sums<A>(x, gate ? n : 0);
    A *facts = static_cast<A*>(stats.mutable_data_ptr()), *sum = static_cast<A*>(gated.mutable_data_ptr());
    dispatch_level([&](auto level) {
      constexpr auto run = decltype(level)::template compiled<norm_pass<T, A>>;
      over_rows(n, [&](int64_t begin, int64_t end) {
        run(from, w.data(), b.data(), gate ? g.data() : nullptr, begin, end, c, static_cast<A>(eps), to, facts, sum);
      });
    });
  });
  return {out, stats, gated};
}

// out = LN(x), or with y LN(sum) where sum = x + y; y and out may be of a shorter type.
void add_norm_rows(const Tensor& x, const std::optional<Tensor>& y, const Tensor& weight, const Tensor& bias,
                   double eps, std::optional<Tensor> sum, Tensor out) {
  require_dim("x", x, 2);
  const int64_t n = x.size(0), c = x.size(1);
  require(y.has_value() == sum.has_value(), "y and sum must be given together");
  dispatch_residual("x", x.scalar_type(), "out", out.scalar_type(), [&](auto type, auto shorter) {
    using T = decltype(type);
    using U = decltype(shorter);
    using A = Accumulate<T>;
    const auto from = rows_of<T>("x", x, n, c);
    const auto to = rows_to<U>("out", out, n, c);
    require(!y || y->scalar_type() == out.scalar_type(), "y must be of the type of out");
    require(!sum || sum->scalar_type() == x.scalar_type(), "sum must be of the type of x");
    const auto also = y ? rows_of<U>("y", *y, n, c) : Rows<const U>{nullptr, 0};
    const auto total = sum ? rows_to<T>("sum", *sum, n, c) : Rows<T>{nullptr, 0};
    const auto w = channels_of<T>("weight", weight, c), b = channels_of<T>("bias", bias, c);
    dispatch_level([&](auto level) {
      constexpr auto run = decltype(level)::template compiled<add_norm_pass<T, U, A>>;
      over_rows(n, [&](int64_t begin, int64_t end) {
        run(from, also, w.data(), b.data(), begin, end, c, static_cast<A>(eps), total, to);
      });
    });
  });
}

// dx, and the sums over rows of du x̂, of du and of d_gate x̂, [3, C]; du = grad + d_gate ⊗ gate.
std::tuple<Tensor, Tensor> norm_rows_backward(const Tensor& grad, const Tensor& x, const Tensor& stats,
                                              const Tensor& weight, const std::optional<Tensor>& gate,
                                              const std::optional<Tensor>& d_gate) {
  require_dim("x", x, 2);
  const int64_t n = x.size(0), c = x.size(1);
  require(gate.has_value() == d_gate.has_value(), "gate and d_gate must be given together");
  Tensor dx = torch::stable::new_empty(x, {n, c}, x.scalar_type()), total = dx;
  dispatch_floating("x", x.scalar_type(), [&](auto type) {
    using T = decltype(type);
    using A = Accumulate<T>;
    const auto g = rows_of<T>("grad", grad, n, c), from = rows_of<T>("x", x, n, c);
    const auto to = rows_to<T>("dx", dx, n, c);
    const auto w = channels_of<T>("weight", weight, c);
    const auto facts = channels_of<A>("stats", stats, 2 * n);
    const auto scale = gate ? channels_of<T>("gate", *gate, c) : std::vector<A>();
    const auto to_gate = gate ? channels_of<A>("d_gate", *d_gate, n) : std::vector<A>();
    std::vector<A> sums(parts_of(n) * 3 * c);
    dispatch_level([&](auto level) {
      constexpr auto run = decltype(level)::template compiled<norm_backward_pass<T, A>>;
      over_parts(n, [&](int64_t part, int64_t begin, int64_t end) {
        std::vector<A> du(c);
        run(g, from, facts.data(), w.data(), gate ? scale.data() : nullptr, to_gate.data(), begin, end, c, to,
            sums.data() + part * 3 * c, du.data());
      });
    });
    const std::vector<A> all = joined(sums, 3 * c);
    total = new_sums<A>(x, 3 * c);
    std::copy(all.begin(), all.end(), static_cast<A*>(total.mutable_data_ptr()));
  });
  return {dx, total};
}

}  // namespace
}  // namespace pointpeft::row_passes

STABLE_TORCH_LIBRARY_FRAGMENT(pointpeft, m) {
  m.def("_scale_shift_rows(Tensor x, Tensor gamma, Tensor beta, bool gelu, Tensor(a!) out) -> ()");
  m.def(
      "_scale_shift_rows_backward(Tensor grad, Tensor x, Tensor gamma, Tensor? beta, Tensor(a!) dx) "
      "-> (Tensor, Tensor)");
  m.def("_norm_rows(Tensor x, Tensor weight, Tensor bias, Tensor? gate, float eps) -> (Tensor, Tensor, Tensor)");
  m.def(
      "_add_norm_rows(Tensor x, Tensor? y, Tensor weight, Tensor bias, float eps, Tensor(a!)? sum, Tensor(b!) out) "
      "-> ()");
  m.def(
      "_norm_rows_backward(Tensor grad, Tensor x, Tensor stats, Tensor weight, Tensor? gate, Tensor? d_gate) "
      "-> (Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(pointpeft, CPU, m) {
  m.impl("_scale_shift_rows", TORCH_BOX(&pointpeft::row_passes::scale_shift_rows));
  m.impl("_scale_shift_rows_backward", TORCH_BOX(&pointpeft::row_passes::scale_shift_rows_backward));
  m.impl("_norm_rows", TORCH_BOX(&pointpeft::row_passes::norm_rows));
  m.impl("_add_norm_rows", TORCH_BOX(&pointpeft::row_passes::add_norm_rows));
  m.impl("_norm_rows_backward", TORCH_BOX(&pointpeft::row_passes::norm_rows_backward));
}
