// Self-attention on the CPU: one head of one cloud at a time, so that its scores never leave the cache. A few queries
// at a time are multiplied with all keys, their scores become shares of one exponential each, and the shares are
// multiplied with all values; the inverse of their sum is applied to the result. Scale and shift of the queries, keys
// and values belong to the pass that packs them, so the adapted ones are never in memory.
#include "attention_amx.h"
#include "attention_products.h"

namespace pointpeft::attention {
namespace {

// s = exp(s - largest) of a row of scores; returns the log of their sum plus the largest, and the inverse of the sum.
// NaN among the scores makes both NaN. `behind` is 0 where there is a token and -inf behind the last one, whose places
// hold next to nothing then.
template <class A, int W>
POINTPEFT_INLINE A soften(A* __restrict s, const A* __restrict behind, int64_t padded, A& inverse) {
  Vector<A, W> most = load<A, W>(s) + load<A, W>(behind);
  for (int64_t i = W; i < padded; i += W) {
    const Vector<A, W> v = load<A, W>(s + i) + load<A, W>(behind + i);
    most = v > most ? v : most;
  }
  over_lanes<W / 2, true>(most);
  const A largest = most[0];
  A part[16] = {};
  for (int64_t i = 0; i < padded; i += 16)
    for (int l = 0; l < 16; ++l) {
      const A share = exponential(s[i + l] + behind[i + l] - largest);
      s[i + l] = share;
      part[l] += share;
    }
  const A total = across(part);
  inverse = A(1) / total;
  return largest + std::log(total);
}

// What a head works in. `padded` tokens and channels are multiples of 16.
template <class A>
struct Scratch {
  int64_t tokens, width, padded, channels;
  Aligned<A> memory;
  A *q, *keys, *v, *scores, *mixed, *behind;
  Scratch(int64_t tokens, int64_t width, int rows)
      : tokens(tokens), width(width), padded((tokens + 15) / 16 * 16), channels((width + 15) / 16 * 16) {
    const int64_t all = padded + rows;
    memory = aligned_array<A>((2 * all + rows) * channels + (width + rows + 1) * padded);
    q = memory.get(), v = q + all * channels, mixed = v + all * channels;
    keys = mixed + rows * channels, scores = keys + width * padded, behind = scores + rows * padded;
    std::fill(memory.get(), behind + tokens, A(0));
    std::fill(behind + tokens, behind + padded, -std::numeric_limits<A>::infinity());
  }
};

template <int W, bool kAdapted, class T, class A>
POINTPEFT_INLINE void pack(const Head<T, A>& head, A scale, Scratch<A>& to) {
  const int64_t third = head.third, step = kAdapted ? third : 0, d = to.width;
  const A *gamma = head.gamma, *beta = head.beta;
  for (int64_t n = 0; n < to.tokens; ++n) {
    const T* from = head.data + n * head.stride;
    if (n + kAhead < to.tokens) prefetch(from, head.stride, third, 3, d);
    pack_row<kAdapted>(from, gamma, beta, scale, d, to.q + n * to.channels);
    pack_row<kAdapted>(from + third, gamma + step, beta + step, A(1), d, to.v + n * to.channels);
  }
  transpose<A, W>(to.v, to.channels, to.padded, d, to.keys, to.padded);
  for (int64_t n = 0; n < to.tokens; ++n)
    pack_row<kAdapted>(head.data + n * head.stride + 2 * third, gamma + 2 * step, beta + 2 * step, A(1), d,
                       to.v + n * to.channels);
}

template <class Level, class T, class A>
POINTPEFT_INLINE void attend(const Head<T, A>& head, Scratch<A>& s, T* out, int64_t out_stride, A* lse) {
  constexpr int W = kLanesOf<Level, A>, kRows = TileShape<Level>::kRows, kMost = TileShape<Level>::kVectors;
  const int64_t d = s.width;
  const A scale = A(1) / std::sqrt(static_cast<A>(d));
  if (head.gamma == nullptr)
    pack<W, false>(head, scale, s);
  else
    pack<W, true>(head, scale, s);
  for (int64_t first = 0; first < s.tokens; first += kRows) {
    product<A, W, kRows, kMost>({s.q + first * s.channels, s.channels, 1}, s.keys, s.padded, d, s.padded / W, s.scores,
                                s.padded);
    A inverse[kRows];
    const int64_t rows = std::min<int64_t>(kRows, s.tokens - first);
    for (int64_t r = 0; r < rows; ++r)
      lse[first + r] = soften<A, W>(s.scores + r * s.padded, s.behind, s.padded, inverse[r]);
    product<A, W, kRows, kMost>({s.scores, s.padded, 1}, s.v, s.channels, s.tokens, s.channels / W, s.mixed,
                                s.channels);
    for (int64_t r = 0; r < rows; ++r) {
      const A* __restrict mixed = s.mixed + r * s.channels;
      T* __restrict to = out + (first + r) * out_stride;
      for (int64_t i = 0; i < d; ++i) to[i] = static_cast<T>(mixed[i] * inverse[r]);
    }
  }
}

// Mixed values go into `out` (B, T, C); returns the log-sum-exp (B, heads, T) in float32 or float64.
Tensor attention(const Tensor& qkv, const std::optional<Tensor>& gamma, const std::optional<Tensor>& beta,
                 int64_t heads, Tensor out) {
  require_heads(qkv, heads, gamma, beta);
  const int64_t batch = qkv.size(0), tokens = qkv.size(1), width = qkv.size(2);
  const int64_t c = width / 3, d = c / heads;
  require(out.dim() == 3 && out.size(0) == batch && out.size(1) == tokens && out.size(2) == c && out.is_contiguous() &&
              out.scalar_type() == qkv.scalar_type(),
          "out must be contiguous, of the type of qkv and of a third of its channels");
  Tensor lse = out;
  dispatch_floating("qkv", qkv.scalar_type(), [&](auto type) {
    using T = decltype(type);
    using A = Accumulate<T>;
    lse =
        torch::stable::new_empty(qkv, {batch, heads, tokens}, sizeof(A) == 8 ? ScalarType::Double : ScalarType::Float);
    const auto scale = gamma ? channels_of<T>("gamma", *gamma, width) : std::vector<A>();
    const auto shift = beta ? channels_of<T>("beta", *beta, width) : std::vector<A>();
    const T* from = static_cast<const T*>(qkv.const_data_ptr());
    T* to = static_cast<T*>(out.mutable_data_ptr());
    A* facts = static_cast<A*>(lse.mutable_data_ptr());
    const int64_t stride_b = qkv.stride(0), stride = qkv.stride(1);
    const auto head_of = [&](int64_t i) {
      const int64_t at = i % heads * d;
      return Head<T, A>{from + i / heads * stride_b + at, stride, c, gamma ? scale.data() + at : nullptr,
                        beta ? shift.data() + at : nullptr};
    };
    const auto out_of = [&](int64_t i) { return to + i / heads * tokens * c + i % heads * d; };
#if defined(POINTPEFT_HAS_AMX)
    if constexpr (std::is_same_v<T, BFloat16>) {
      if (cpu_level() >= CpuLevel::amx) {
        torch::stable::parallel_for(0, batch * heads, 1, [&](int64_t begin, int64_t end) {
          TileScratch scratch(tokens, d);
          const Tiles tiles;
          for (int64_t i = begin; i < end; ++i) attend_by_tiles(head_of(i), scratch, out_of(i), c, facts + i * tokens);
        });
        return;
      }
    }
#endif
    dispatch_level([&](auto level) {
      using Level = decltype(level);
      torch::stable::parallel_for(0, batch * heads, 1, [&](int64_t begin, int64_t end) {
        Scratch<A> scratch(tokens, d, TileShape<Level>::kRows);
        for (int64_t i = begin; i < end; ++i)
          Level::template compiled<attend<Level, T, A>>(head_of(i), scratch, out_of(i), c, facts + i * tokens);
      });
    });
  });
  return lse;
}

}  // namespace
}  // namespace pointpeft::attention

STABLE_TORCH_LIBRARY_FRAGMENT(pointpeft, m) {
  m.def("_attention(Tensor qkv, Tensor? gamma, Tensor? beta, int heads, Tensor(a!) out) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(pointpeft, CPU, m) { m.impl("_attention", TORCH_BOX(&pointpeft::attention::attention)); }
