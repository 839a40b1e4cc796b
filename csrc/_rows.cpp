// The element-wise passes of the scaled and shifted layers on the CPU: each reads its rows once, writes once, and sums
// over the rows on the way. Sums are taken over parts of the rows that do not depend on the number of threads, and
// joined in order: the same result on every run and at every vector level.
#include "gelu.h"

namespace pointpeft {
namespace {

constexpr int64_t kParts = 64;     // of the rows, at most, each summed by itself
constexpr int64_t kPartRows = 16;  // in a part, at least

// Rows of equal width, any distance apart.
template <class T>
struct Rows {
  T* data;
  int64_t stride;
  T* operator[](int64_t row) const { return data + row * stride; }
};

template <class T>
Rows<const T> rows_of(const char* name, const Tensor& tensor, int64_t n, int64_t c) {
  require(tensor.dim() == 2 && tensor.size(0) == n && tensor.size(1) == c, name, " must have shape (", n, ", ", c, ")");
  require(n == 0 || c < 2 || tensor.stride(1) == 1, name, " must have its channels side by side");
  return {static_cast<const T*>(tensor.const_data_ptr()), tensor.stride(0)};
}

template <class T>
Rows<T> rows_to(const char* name, Tensor& tensor, int64_t n, int64_t c) {
  const Rows<const T> rows = rows_of<T>(name, tensor, n, c);
  return {static_cast<T*>(tensor.mutable_data_ptr()), rows.stride};
}

// A vector of channels, in the type that sums are taken in.
template <class T>
std::vector<Accumulate<T>> channels_of(const char* name, const Tensor& tensor, int64_t c) {
  require(tensor.dim() >= 1 && tensor.numel() == c, name, " must hold ", c, " values");
  const Tensor whole = torch::stable::contiguous(tensor);
  const T* data = static_cast<const T*>(whole.const_data_ptr());
  std::vector<Accumulate<T>> values(c);
  for (int64_t i = 0; i < c; ++i) values[i] = static_cast<Accumulate<T>>(data[i]);
  return values;
}

template <class A>
Tensor new_sums(const Tensor& like, int64_t c) {
  return torch::stable::new_empty(like, {c}, sizeof(A) == 8 ? ScalarType::Double : ScalarType::Float);
}

int64_t parts_of(int64_t n) { return std::max<int64_t>(1, std::min(kParts, n / kPartRows)); }

// Joins the sums of all parts, each `width` long, in order.
template <class A>
std::vector<A> joined(const std::vector<A>& sums, int64_t width) {
  std::vector<A> total(sums.begin(), sums.begin() + width);
  for (size_t at = width; at < sums.size(); at += width)
    for (int64_t i = 0; i < width; ++i) total[i] += sums[at + i];
  return total;
}

// Sixteen partial sums of a row, joined in pairs: the same order at every vector level.
template <class A>
POINTPEFT_INLINE A across(A* part) {
  for (int l = 0; l < 8; ++l) part[l] += part[l + 8];
  for (int l = 0; l < 4; ++l) part[l] += part[l + 4];
  return (part[0] + part[2]) + (part[1] + part[3]);
}

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
#pragma GCC ivdep
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

template <class T, class A>
POINTPEFT_INLINE void norm_row(const T* __restrict x, const A* __restrict weight, const A* __restrict bias,
                               const A* __restrict gate, int64_t c, A eps, T* __restrict out, A* stats, A* gated) {
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
  for (i = 0; i < c; ++i) out[i] = static_cast<T>((static_cast<A>(x[i]) - mean) * rstd * weight[i] + bias[i]);
  if (gate == nullptr) return;
  for (int64_t l = 0; l < 16; ++l) part[l] = 0;
  for (i = 0; i + 16 <= c; i += 16)
    for (int64_t l = 0; l < 16; ++l) part[l] += static_cast<A>(out[i + l]) * gate[i + l];
  for (int64_t l = 0; i + l < c; ++l) part[l] += static_cast<A>(out[i + l]) * gate[i + l];
  *gated = across(part);
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

// ---- the adapters' bottleneck and output ----

struct Dropout {
  bool drops;
  uint32_t low, high;
  float probability;
};

template <class A>
POINTPEFT_INLINE A survivor(const Dropout& dropout, A scale, int64_t index) {
  return kept(dropout.low, dropout.high, static_cast<uint32_t>(index), dropout.probability) ? scale : A(0);
}

// h = s act(z) with dropout. `first` is the index of the row's first element.
template <bool kRelu, class T, class A>
POINTPEFT_INLINE void hidden_row(const T* __restrict z, A s, const Dropout dropout, A scale, int64_t first, int64_t r,
                                 T* __restrict h) {
  for (int64_t i = 0; i < r; ++i) {
    const A value = static_cast<A>(z[i]);
    const A factor = dropout.drops ? survivor(dropout, scale, first + i) : A(1);
    h[i] = static_cast<T>((kRelu ? (value > 0 ? value : A(0)) : gelu(value)) * factor * s);
  }
}

// dz from back = g W_up, and the sum back · act(z) with dropout, which the gate's gradient needs.
template <bool kRelu, class T, class A>
POINTPEFT_INLINE void hidden_backward_row(const T* __restrict back, const T* __restrict z, A s, const Dropout dropout,
                                          A scale, int64_t first, int64_t r, T* __restrict dz, A* __restrict d_bias,
                                          A* sum) {
  A part[16] = {};
  for (int64_t begin = 0; begin < r; begin += 16) {
    const int64_t width = r - begin < 16 ? r - begin : 16;
    for (int64_t l = 0; l < width; ++l) {
      const int64_t i = begin + l;
      const A value = static_cast<A>(z[i]), from = static_cast<A>(back[i]);
      const A factor = dropout.drops ? survivor(dropout, scale, first + i) : A(1);
      A below, density;
      normal(value, below, density);
      const A h = kRelu ? (value > 0 ? value : A(0)) : value * below;
      const A slope = kRelu ? (value > 0 ? A(1) : A(0)) : below + value * density;
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

// The rows compiled once for each vector level; the level is chosen once a call.
#define POINTPEFT_LEVEL(NAME, TARGET)                                                                                  \
  struct NAME {                                                                                                        \
    template <bool kGelu, class T, class A>                                                                            \
    TARGET static void forward(Rows<const T> x, const A* gamma, const A* beta, int64_t begin, int64_t end, int64_t c,  \
                               Rows<T> out) {                                                                          \
      for (int64_t r = begin; r < end; ++r) forward_row<kGelu>(x[r], gamma, beta, c, out[r]);                          \
    }                                                                                                                  \
    template <bool kGelu, class T, class A>                                                                            \
    TARGET static void backward(Rows<const T> grad, Rows<const T> x, const A* gamma, const A* beta, int64_t begin,     \
                                int64_t end, int64_t c, Rows<T> dx, A* sums) {                                         \
      for (int64_t r = begin; r < end; ++r) backward_row<kGelu>(grad[r], x[r], gamma, beta, c, dx[r], sums, sums + c); \
    }                                                                                                                  \
    template <class T, class A>                                                                                        \
    TARGET static void norm(Rows<const T> x, const A* weight, const A* bias, const A* gate, int64_t begin,             \
                            int64_t end, int64_t c, A eps, Rows<T> out, A* stats, A* gated) {                          \
      for (int64_t r = begin; r < end; ++r)                                                                            \
        norm_row(x[r], weight, bias, gate, c, eps, out[r], stats + 2 * r, gated + r);                                  \
    }                                                                                                                  \
    template <class T, class A>                                                                                        \
    TARGET static void norm_backward(Rows<const T> grad, Rows<const T> x, const A* stats, const A* weight,             \
                                     const A* gate, const A* d_gate, int64_t begin, int64_t end, int64_t c,            \
                                     Rows<T> dx, A* sums, A* du) {                                                     \
      for (int64_t r = begin; r < end; ++r)                                                                            \
        norm_backward_row(grad[r], x[r], stats + 2 * r, weight, gate, gate ? d_gate[r] : A(0), c, dx[r], sums,         \
                          sums + c, sums + 2 * c, du);                                                                 \
    }                                                                                                                  \
    template <bool kRelu, class T, class A>                                                                            \
    TARGET static void hidden(Rows<const T> z, const A* s, Dropout dropout, A scale, int64_t begin, int64_t end,       \
                              int64_t r, Rows<T> h) {                                                                  \
      for (int64_t n = begin; n < end; ++n) hidden_row<kRelu>(z[n], s[n], dropout, scale, n * r, r, h[n]);             \
    }                                                                                                                  \
    template <bool kRelu, class T, class A>                                                                            \
    TARGET static void hidden_backward(Rows<const T> back, Rows<const T> z, const A* s, Dropout dropout, A scale,      \
                                       int64_t begin, int64_t end, int64_t r, Rows<T> dz, A* d_bias, A* sum) {         \
      for (int64_t n = begin; n < end; ++n)                                                                            \
        hidden_backward_row<kRelu>(back[n], z[n], s[n], dropout, scale, n * r, r, dz[n], d_bias, sum + n);             \
    }                                                                                                                  \
    template <bool kPrompt, class T, class A>                                                                          \
    TARGET static void output(Rows<T> a, const A* up_bias, const A* s, int64_t begin, int64_t end, int64_t c,          \
                              A* sums) {                                                                               \
      for (int64_t n = begin; n < end; ++n) output_row<kPrompt>(a[n], up_bias, s[n], c, sums);                         \
    }                                                                                                                  \
    template <bool kPrompt, class T, class A>                                                                          \
    TARGET static void gradient(Rows<const T> grad, Rows<T> a, const A* share, const A* up_bias, const A* s,           \
                                int64_t begin, int64_t end, int64_t tokens, int64_t c, A* d_up_bias, A* to_bias) {     \
      for (int64_t n = begin; n < end; ++n)                                                                            \
        gradient_row<kPrompt>(grad[n], kPrompt ? a[n] : nullptr, kPrompt ? share + n / tokens * c : nullptr, up_bias,  \
                              s[n], c, d_up_bias, to_bias + n);                                                        \
    }                                                                                                                  \
  };
POINTPEFT_LEVEL(Portable, )
#if defined(__x86_64__)
POINTPEFT_LEVEL(Avx2, __attribute__((target("avx2"))))
POINTPEFT_LEVEL(Avx512, __attribute__((target("avx512f,avx512vl,avx512bw,avx512dq,prefer-vector-width=512"))))
#endif

template <class Body>
void dispatch_level(Body&& body) {
#if defined(__x86_64__)
  if (cpu_level() == CpuLevel::avx512) return body(Avx512{});
  if (cpu_level() == CpuLevel::avx2) return body(Avx2{});
#endif
  body(Portable{});
}

template <class Body>
void dispatch_flag(bool flag, Body&& body) {
  if (flag) return body(std::true_type{});
  body(std::false_type{});
}

// Calls body(part, first row, row behind the last) for every part of the rows.
template <class Body>
void over_parts(int64_t n, Body&& body) {
  const int64_t parts = parts_of(n);
  torch::stable::parallel_for(0, parts, 1, [&](int64_t begin, int64_t end) {
    for (int64_t part = begin; part < end; ++part) body(part, part * n / parts, (part + 1) * n / parts);
  });
}

// As `over_parts`, where nothing is summed: a thread's rows at once.
template <class Body>
void over_rows(int64_t n, Body&& body) {
  torch::stable::parallel_for(0, n, kPartRows, [&](int64_t begin, int64_t end) { body(begin, end); });
}

void scale_shift_rows(const Tensor& x, const Tensor& gamma, const Tensor& beta, bool with_gelu, Tensor out) {
  const int64_t n = x.size(0), c = x.size(1);
  dispatch_floating("x", x.scalar_type(), [&](auto type) {
    using T = decltype(type);
    const auto from = rows_of<T>("x", x, n, c);
    const auto to = rows_to<T>("out", out, n, c);
    const auto scale = channels_of<T>("gamma", gamma, c), shift = channels_of<T>("beta", beta, c);
    dispatch_level([&](auto level) {
      dispatch_flag(with_gelu, [&](auto flag) {
        over_rows(n, [&](int64_t begin, int64_t end) {
          decltype(level)::template forward<decltype(flag)::value>(from, scale.data(), shift.data(), begin, end, c, to);
        });
      });
    });
  });
}

std::tuple<Tensor, Tensor> scale_shift_rows_backward(const Tensor& grad, const Tensor& x, const Tensor& gamma,
                                                     const std::optional<Tensor>& beta, Tensor dx) {
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
        over_parts(n, [&](int64_t part, int64_t begin, int64_t end) {
          decltype(level)::template backward<decltype(flag)::value>(g, from, scale.data(), shift.data(), begin, end, c,
                                                                    to, sums.data() + part * 2 * c);
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
      over_rows(n, [&](int64_t begin, int64_t end) {
        decltype(level)::norm(from, w.data(), b.data(), gate ? g.data() : nullptr, begin, end, c, static_cast<A>(eps),
                              to, facts, sum);
      });
    });
  });
  return {out, stats, gated};
}

// dx, and the sums over rows of du x̂, of du and of d_gate x̂, [3, C]; du = grad + d_gate ⊗ gate.
std::tuple<Tensor, Tensor> norm_rows_backward(const Tensor& grad, const Tensor& x, const Tensor& stats,
                                              const Tensor& weight, const std::optional<Tensor>& gate,
                                              const std::optional<Tensor>& d_gate) {
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
      over_parts(n, [&](int64_t part, int64_t begin, int64_t end) {
        std::vector<A> du(c);
        decltype(level)::norm_backward(g, from, facts.data(), w.data(), gate ? scale.data() : nullptr, to_gate.data(),
                                       begin, end, c, to, sums.data() + part * 3 * c, du.data());
      });
    });
    const std::vector<A> all = joined(sums, 3 * c);
    total = new_sums<A>(x, 3 * c);
    std::copy(all.begin(), all.end(), static_cast<A*>(total.mutable_data_ptr()));
  });
  return {dx, total};
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

// s ⊙ dropout(act(z)) of rows [N, R]; s is [N], in the type of sums.
Tensor adapter_hidden(const Tensor& z, const Tensor& s, const std::optional<Tensor>& seed, double probability,
                      bool relu) {
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
      dispatch_flag(relu, [&](auto flag) {
        over_rows(n, [&](int64_t begin, int64_t end) {
          decltype(level)::template hidden<decltype(flag)::value>(from, factor.data(), dropout,
                                                                  scale_of<A>(probability), begin, end, r, to);
        });
      });
    });
  });
  return h;
}

// dz of rows [N, R], its sum over rows [R], and back · dropout(act(z)) [N], from back = g W_up.
std::tuple<Tensor, Tensor, Tensor> adapter_hidden_backward(const Tensor& back, const Tensor& z, const Tensor& s,
                                                           const std::optional<Tensor>& seed, double probability,
                                                           bool relu) {
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
      dispatch_flag(relu, [&](auto flag) {
        over_parts(n, [&](int64_t part, int64_t begin, int64_t end) {
          decltype(level)::template hidden_backward<decltype(flag)::value>(g, from, factor.data(), dropout,
                                                                           scale_of<A>(probability), begin, end, r, to,
                                                                           sums.data() + part * r, of_row);
        });
      });
    });
    const std::vector<A> all = joined(sums, r);
    std::copy(all.begin(), all.end(), static_cast<A*>(d_bias.mutable_data_ptr()));
  });
  return {dz, d_bias, sum};
}

// Adds s ⊗ up_bias to a [N, C] in place; with clouds > 0 returns the mean over a cloud's tokens of GELU(a) [clouds, C].
Tensor adapter_output(Tensor a, const Tensor& up_bias, const Tensor& s, int64_t clouds) {
  const int64_t n = a.size(0), c = a.size(1);
  require(clouds == 0 || n % clouds == 0, "clouds must divide N = ", n, ", got ", clouds);
  Tensor prompt = torch::stable::new_empty(a, {clouds, c}, a.scalar_type());
  dispatch_floating("a", a.scalar_type(), [&](auto type) {
    using T = decltype(type);
    using A = Accumulate<T>;
    const auto rows = rows_to<T>("a", a, n, c);
    const auto bias = channels_of<T>("up_bias", up_bias, c);
    const auto factor = channels_of<A>("s", s, n);
    dispatch_level([&](auto level) {
      if (clouds == 0) {
        over_rows(n, [&](int64_t begin, int64_t end) {
          decltype(level)::template output<false>(rows, bias.data(), factor.data(), begin, end, c,
                                                  static_cast<A*>(nullptr));
        });
        return;
      }
      const int64_t tokens = n / clouds, parts = parts_of(tokens);
      std::vector<A> sums(clouds * parts * c);
      torch::stable::parallel_for(0, clouds * parts, 1, [&](int64_t begin, int64_t end) {
        for (int64_t unit = begin; unit < end; ++unit) {
          const int64_t first = unit / parts * tokens, part = unit % parts;
          decltype(level)::template output<true>(rows, bias.data(), factor.data(), first + part * tokens / parts,
                                                 first + (part + 1) * tokens / parts, c, sums.data() + unit * c);
        }
      });
      T* to = static_cast<T*>(prompt.mutable_data_ptr());
      for (int64_t cloud = 0; cloud < clouds; ++cloud)
        for (int64_t i = 0; i < c; ++i) {
          A total = 0;
          for (int64_t part = 0; part < parts; ++part) total += sums[(cloud * parts + part) * c + i];
          to[cloud * c + i] = static_cast<T>(total / static_cast<A>(tokens));
        }
    });
  });
  return prompt;
}

// Sum of s ⊙ g [C] and g · up_bias [N], where g is grad, or with grad_prompt [clouds, C] grad and the prompt's gradient
// at a + s ⊗ up_bias; that g is then left in the place of a [N, C].
std::tuple<Tensor, Tensor> adapter_gradient(const Tensor& grad, const std::optional<Tensor>& grad_prompt, Tensor a,
                                            const Tensor& up_bias, const Tensor& s) {
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
        over_parts(n, [&](int64_t part, int64_t begin, int64_t end) {
          decltype(level)::template gradient<decltype(flag)::value>(
              g, rows, share.data(), bias.data(), factor.data(), begin, end, tokens, c, sums.data() + part * c, of_row);
        });
      });
    });
    const std::vector<A> all = joined(sums, c);
    std::copy(all.begin(), all.end(), static_cast<A*>(d_up_bias.mutable_data_ptr()));
  });
  return {d_up_bias, to_bias};
}

}  // namespace
}  // namespace pointpeft

STABLE_TORCH_LIBRARY_FRAGMENT(pointpeft, m) {
  m.def("_scale_shift_rows(Tensor x, Tensor gamma, Tensor beta, bool gelu, Tensor(a!) out) -> ()");
  m.def(
      "_scale_shift_rows_backward(Tensor grad, Tensor x, Tensor gamma, Tensor? beta, Tensor(a!) dx) "
      "-> (Tensor, Tensor)");
  m.def("_norm_rows(Tensor x, Tensor weight, Tensor bias, Tensor? gate, float eps) -> (Tensor, Tensor, Tensor)");
  m.def(
      "_norm_rows_backward(Tensor grad, Tensor x, Tensor stats, Tensor weight, Tensor? gate, Tensor? d_gate) "
      "-> (Tensor, Tensor)");
  m.def("_adapter_hidden(Tensor z, Tensor s, Tensor? seed, float probability, bool relu) -> Tensor");
  m.def(
      "_adapter_hidden_backward(Tensor back, Tensor z, Tensor s, Tensor? seed, float probability, bool relu) "
      "-> (Tensor, Tensor, Tensor)");
  m.def("_adapter_output(Tensor(a!) a, Tensor up_bias, Tensor s, int clouds) -> Tensor");
  m.def(
      "_adapter_gradient(Tensor grad, Tensor? grad_prompt, Tensor(a!) a, Tensor up_bias, Tensor s) "
      "-> (Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(pointpeft, CPU, m) {
  m.impl("_scale_shift_rows", TORCH_BOX(&pointpeft::scale_shift_rows));
  m.impl("_scale_shift_rows_backward", TORCH_BOX(&pointpeft::scale_shift_rows_backward));
  m.impl("_norm_rows", TORCH_BOX(&pointpeft::norm_rows));
  m.impl("_norm_rows_backward", TORCH_BOX(&pointpeft::norm_rows_backward));
  m.impl("_adapter_hidden", TORCH_BOX(&pointpeft::adapter_hidden));
  m.impl("_adapter_hidden_backward", TORCH_BOX(&pointpeft::adapter_hidden_backward));
  m.impl("_adapter_output", TORCH_BOX(&pointpeft::adapter_output));
  m.impl("_adapter_gradient", TORCH_BOX(&pointpeft::adapter_gradient));
}
