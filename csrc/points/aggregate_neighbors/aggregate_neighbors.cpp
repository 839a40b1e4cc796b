// Gather and pool neighbours on the CPU without the (B, G, S, C) tensor between. Forward: the groups are shared out to
// the threads, and a group is pooled a block of 64 channels at a time, whose running pool stays in registers while the
// rows of its neighbours pass by. Backward: the work is split by clouds and blocks of channels, never by groups, so
// every sum has one order on every run.
#include "aggregate_mode.h"
#include "common/checks.h"
#include "common/levels.h"

namespace pointpeft::aggregate_neighbors {
namespace {

constexpr int64_t kBlock = 64;                // channels pooled at a time
constexpr int64_t kScatterBlock = 128;        // channels that one thread scatters at a time
constexpr int64_t kGrain = int64_t(1) << 15;  // elements read that are worth a thread

// Pools `width` channels of one group; a caller with a constant width gets an unrolled loop. NaN wins the maximum, and
// of equal values the first.
template <int64_t mode, class T, class A>
POINTPEFT_INLINE void pool_block(const T* rows, int64_t channels, const int64_t* idx, int64_t s, const A* weights,
                                 int64_t width, T* out, uint8_t* arg8, int32_t* arg32) {
  A pooled[kBlock];
  int32_t arg[kBlock];
  const T* __restrict first = rows + idx[0] * channels;
  for (int64_t c = 0; c < width; ++c) {
    pooled[c] = mode == kWeighted ? weights[0] * static_cast<A>(first[c]) : static_cast<A>(first[c]);
    arg[c] = 0;
  }
  for (int64_t j = 1; j < s; ++j) {
    const T* __restrict row = rows + idx[j] * channels;
    if constexpr (mode == kMax) {
      if (arg8 != nullptr || arg32 != nullptr) {
        for (int64_t c = 0; c < width; ++c) {
          const A value = static_cast<A>(row[c]);
          const bool larger = !(value <= pooled[c]) & (pooled[c] == pooled[c]);
          pooled[c] = larger ? value : pooled[c];
          arg[c] = larger ? static_cast<int32_t>(j) : arg[c];
        }
      } else {
        for (int64_t c = 0; c < width; ++c) {
          const A value = static_cast<A>(row[c]);
          pooled[c] = (!(value <= pooled[c]) & (pooled[c] == pooled[c])) ? value : pooled[c];
        }
      }
    } else if constexpr (mode == kWeighted) {
      const A weight = weights[j];
      for (int64_t c = 0; c < width; ++c) pooled[c] += weight * static_cast<A>(row[c]);
    } else {
      for (int64_t c = 0; c < width; ++c) pooled[c] += static_cast<A>(row[c]);
    }
  }
  const A divisor = mode == kMean ? static_cast<A>(s) : A(1);
  for (int64_t c = 0; c < width; ++c) out[c] = static_cast<T>(pooled[c] / divisor);
  if (arg8 != nullptr)
    for (int64_t c = 0; c < width; ++c) arg8[c] = static_cast<uint8_t>(arg[c]);
  if (arg32 != nullptr)
    for (int64_t c = 0; c < width; ++c) arg32[c] = arg[c];
}

template <int64_t mode, class T, class A>
POINTPEFT_INLINE void pool_group(const T* rows, int64_t channels, const int64_t* idx, int64_t s, const A* weights,
                                 T* out, uint8_t* arg8, int32_t* arg32) {
  int64_t c = 0;
  for (; c + kBlock <= channels; c += kBlock)
    pool_block<mode>(rows + c, channels, idx, s, weights, kBlock, out + c, arg8 ? arg8 + c : nullptr,
                     arg32 ? arg32 + c : nullptr);
  if (c < channels)
    pool_block<mode>(rows + c, channels, idx, s, weights, channels - c, out + c, arg8 ? arg8 + c : nullptr,
                     arg32 ? arg32 + c : nullptr);
}

template <class A>
POINTPEFT_INLINE void add_row(const A* __restrict from, A weight, int64_t width, A* __restrict to) {
  for (int64_t c = 0; c < width; ++c) to[c] += weight * from[c];
}

// Sixteen partial sums, joined in pairs: the same order at every vector level.
template <class T>
POINTPEFT_INLINE Accumulate<T> dot(const T* __restrict a, const T* __restrict b, int64_t width) {
  using A = Accumulate<T>;
  A part[16] = {};
  int64_t c = 0;
  for (; c + 16 <= width; c += 16)
    for (int64_t l = 0; l < 16; ++l) part[l] += static_cast<A>(a[c + l]) * static_cast<A>(b[c + l]);
  for (int64_t l = 0; c < width; ++c, ++l) part[l] += static_cast<A>(a[c]) * static_cast<A>(b[c]);
  for (int64_t half = 8; half > 0; half /= 2)
    for (int64_t l = 0; l < half; ++l) part[l] += part[l + half];
  return part[0];
}

// An index outside 0..n-1 among `count`, or nullptr.
const int64_t* find_bad(const int64_t* idx, int64_t count, int64_t n) {
  for (int64_t i = 0; i < count; ++i)
    if (static_cast<uint64_t>(idx[i]) >= static_cast<uint64_t>(n)) return idx + i;
  return nullptr;
}

void require_in_range(const int64_t* bad, int64_t n) {
  require(bad == nullptr, "idx must be between 0 and N - 1 = ", n - 1, ", got ", bad ? *bad : 0);
}

std::tuple<Tensor, Tensor> aggregate_neighbors(const Tensor& given_features, const Tensor& given_idx,
                                               const std::optional<Tensor>& given_weights, int64_t mode,
                                               bool keep_argmax) {
  require_clouds("features", given_features, -1);
  require_pooling(given_idx, given_weights, mode, "features", given_features);
  const Tensor features = torch::stable::contiguous(given_features), idx = torch::stable::contiguous(given_idx);
  const int64_t batch = features.size(0), n = features.size(1), channels = features.size(2);
  const int64_t groups = idx.size(1), s = idx.size(2);
  Tensor out = torch::stable::new_empty(features, {batch, groups, channels}, features.scalar_type());
  const bool keep = mode == kMax && keep_argmax, narrow = s <= 256;
  Tensor argmax = torch::stable::new_empty(features, {keep ? batch : 0, groups, channels},
                                           narrow ? ScalarType::Byte : ScalarType::Int);
  std::optional<Tensor> weights;
  if (given_weights) weights = torch::stable::contiguous(*given_weights);
  const int64_t* index = idx.const_data_ptr<int64_t>();
  uint8_t* arg8 = keep && narrow ? static_cast<uint8_t*>(argmax.mutable_data_ptr()) : nullptr;
  int32_t* arg32 = keep && !narrow ? static_cast<int32_t*>(argmax.mutable_data_ptr()) : nullptr;
  std::atomic<const int64_t*> bad{nullptr};
  dispatch_floating("features", features.scalar_type(), [&](auto type) {
    using T = decltype(type);
    using A = Accumulate<T>;
    const T* from = static_cast<const T*>(features.const_data_ptr());
    const A* weight = weights ? static_cast<const A*>(weights->const_data_ptr()) : nullptr;
    T* to = static_cast<T*>(out.mutable_data_ptr());
    const int64_t grain = kGrain / std::max<int64_t>(1, s * channels) + 1;
    dispatch_mode(mode, [&](auto fixed) {
      dispatch_level([&](auto level) {
        constexpr auto run = decltype(level)::template compiled<pool_group<decltype(fixed)::value, T, A>>;
        torch::stable::parallel_for(0, batch * groups, grain, [&](int64_t begin, int64_t end) {
          for (int64_t g = begin; g < end; ++g) {
            if (const int64_t* found = find_bad(index + g * s, s, n)) {
              bad = found;
              return;
            }
            run(from + g / groups * n * channels, channels, index + g * s, s, weight ? weight + g * s : nullptr,
                to + g * channels, arg8 ? arg8 + g * channels : nullptr, arg32 ? arg32 + g * channels : nullptr);
          }
        });
      });
    });
  });
  require_in_range(bad, n);
  return {out, argmax};
}

// The largest of some places in either width; a negative one counts as huge.
int64_t largest_place(const uint8_t* arg8, const int32_t* arg32, int64_t count) {
  uint8_t narrow = 0;
  uint32_t wide = 0;
  if (arg8 != nullptr)
    for (int64_t c = 0; c < count; ++c) narrow = std::max(narrow, arg8[c]);
  else
    for (int64_t c = 0; c < count; ++c) wide = std::max(wide, static_cast<uint32_t>(arg32[c]));
  return std::max<int64_t>(narrow, wide);
}

// Adds what one cloud's groups send back to `width` channels from `first` on into sums (N, width), group by group;
// false where argmax names none of the S neighbours.
template <class Level, class T, class A>
bool scatter(const T* grad, const int64_t* idx, const A* weights, const uint8_t* arg8, const int32_t* arg32,
             int64_t mode, int64_t groups, int64_t s, int64_t channels, int64_t first, int64_t width, A* sums) {
  A row[kScatterBlock];
  for (int64_t g = 0; g < groups; ++g) {
    const T* from = grad + g * channels + first;
    const A divisor = mode == kMean ? static_cast<A>(s) : A(1);
    for (int64_t c = 0; c < width; ++c) row[c] = static_cast<A>(from[c]) / divisor;
    if (mode == kMax) {
      const int64_t start = g * channels + first;
      if (largest_place(arg8 ? arg8 + start : nullptr, arg32 ? arg32 + start : nullptr, width) >= s) return false;
      for (int64_t c = 0; c < width; ++c)
        sums[idx[g * s + (arg8 ? arg8[start + c] : arg32[start + c])] * width + c] += row[c];
    } else {
      for (int64_t j = 0; j < s; ++j)
        Level::template compiled<add_row<A>>(row, weights ? weights[g * s + j] : A(1), width,
                                             sums + idx[g * s + j] * width);
    }
  }
  return true;
}

// Gradient of features (B, N, C). `sorted` and `row_of`, a stable sort of idx, serve the CUDA kernel alone.
Tensor aggregate_neighbors_backward(const Tensor& given_grad, const Tensor& given_idx,
                                    const std::optional<Tensor>& given_weights,
                                    const std::optional<Tensor>& given_argmax, const std::optional<Tensor>&,
                                    const std::optional<Tensor>&, int64_t n, int64_t mode) {
  require_pooled(given_grad, given_idx, given_weights, given_argmax, n, mode);
  const Tensor grad = torch::stable::contiguous(given_grad), idx = torch::stable::contiguous(given_idx);
  const int64_t batch = grad.size(0), groups = grad.size(1), channels = grad.size(2), s = idx.size(2);
  Tensor out = torch::stable::new_empty(grad, {batch, n, channels}, grad.scalar_type());
  std::optional<Tensor> weights, argmax;
  if (given_weights) weights = torch::stable::contiguous(*given_weights);
  if (given_argmax) argmax = torch::stable::contiguous(*given_argmax);
  const bool narrow = argmax && argmax->scalar_type() == ScalarType::Byte;
  const uint8_t* arg8 = narrow ? static_cast<const uint8_t*>(argmax->const_data_ptr()) : nullptr;
  const int32_t* arg32 = argmax && !narrow ? static_cast<const int32_t*>(argmax->const_data_ptr()) : nullptr;
  const int64_t* index = idx.const_data_ptr<int64_t>();
  require_in_range(find_bad(index, batch * groups * s, n), n);
  const int64_t parts = (channels + kScatterBlock - 1) / kScatterBlock;
  std::atomic<bool> good{true};
  dispatch_floating("grad", grad.scalar_type(), [&](auto type) {
    using T = decltype(type);
    using A = Accumulate<T>;
    const T* from = static_cast<const T*>(grad.const_data_ptr());
    const A* weight = weights ? static_cast<const A*>(weights->const_data_ptr()) : nullptr;
    T* to = static_cast<T*>(out.mutable_data_ptr());
    dispatch_level([&](auto level) {
      torch::stable::parallel_for(0, batch * parts, 1, [&](int64_t begin, int64_t end) {
        std::unique_ptr<A[]> sums(new A[n * std::min(channels, kScatterBlock)]);
        for (int64_t unit = begin; unit < end; ++unit) {
          const int64_t b = unit / parts, first = unit % parts * kScatterBlock;
          const int64_t width = std::min(kScatterBlock, channels - first), start = b * groups;
          std::fill(sums.get(), sums.get() + n * width, A(0));
          if (!scatter<decltype(level)>(from + start * channels, index + start * s,
                                        weight ? weight + start * s : nullptr, arg8 ? arg8 + start * channels : nullptr,
                                        arg32 ? arg32 + start * channels : nullptr, mode, groups, s, channels, first,
                                        width, sums.get())) {
            good = false;
            return;
          }
          for (int64_t i = 0; i < n; ++i)
            for (int64_t c = 0; c < width; ++c)
              to[(b * n + i) * channels + first + c] = static_cast<T>(sums[i * width + c]);
        }
      });
    });
  });
  require(good, "argmax must be between 0 and S - 1 = ", s - 1);
  return out;
}

// Gradient of weights (B, G, S): the product of a group's gradient with each of its neighbours.
Tensor aggregate_neighbors_backward_weights(const Tensor& given_grad, const Tensor& given_features,
                                            const Tensor& given_idx) {
  require_pooled_weights(given_grad, given_features, given_idx);
  const Tensor grad = torch::stable::contiguous(given_grad), features = torch::stable::contiguous(given_features);
  const Tensor idx = torch::stable::contiguous(given_idx);
  const int64_t batch = grad.size(0), groups = grad.size(1), channels = grad.size(2), n = features.size(1);
  const int64_t s = idx.size(2);
  const ScalarType wide = grad.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
  Tensor out = torch::stable::new_empty(grad, {batch, groups, s}, wide);
  const int64_t* index = idx.const_data_ptr<int64_t>();
  require_in_range(find_bad(index, batch * groups * s, n), n);
  dispatch_floating("grad", grad.scalar_type(), [&](auto type) {
    using T = decltype(type);
    const T* rows = static_cast<const T*>(features.const_data_ptr());
    const T* from = static_cast<const T*>(grad.const_data_ptr());
    Accumulate<T>* to = static_cast<Accumulate<T>*>(out.mutable_data_ptr());
    const int64_t grain = kGrain / std::max<int64_t>(1, s * channels) + 1;
    dispatch_level([&](auto level) {
      constexpr auto run = decltype(level)::template compiled<dot<T>>;
      torch::stable::parallel_for(0, batch * groups, grain, [&](int64_t begin, int64_t end) {
        for (int64_t g = begin; g < end; ++g)
          for (int64_t j = 0; j < s; ++j)
            to[g * s + j] = run(from + g * channels, rows + (g / groups * n + index[g * s + j]) * channels, channels);
      });
    });
  });
  return out;
}

}  // namespace
}  // namespace pointpeft::aggregate_neighbors

STABLE_TORCH_LIBRARY_FRAGMENT(pointpeft, m) {
  m.def(
      "aggregate_neighbors(Tensor features, Tensor idx, Tensor? weights, int mode, bool keep_argmax) -> "
      "(Tensor, Tensor)");
  m.def(
      "aggregate_neighbors_backward(Tensor grad, Tensor idx, Tensor? weights, Tensor? argmax, Tensor? sorted, "
      "Tensor? row_of, SymInt n, int mode) -> Tensor");
  m.def("aggregate_neighbors_backward_weights(Tensor grad, Tensor features, Tensor idx) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(pointpeft, CPU, m) {
  m.impl("aggregate_neighbors", TORCH_BOX(&pointpeft::aggregate_neighbors::aggregate_neighbors));
  m.impl("aggregate_neighbors_backward", TORCH_BOX(&pointpeft::aggregate_neighbors::aggregate_neighbors_backward));
  m.impl("aggregate_neighbors_backward_weights",
         TORCH_BOX(&pointpeft::aggregate_neighbors::aggregate_neighbors_backward_weights));
}
