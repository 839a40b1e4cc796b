// Rows by index on the CPU, and the sum of rows by index that is its backward. The forward copies rows whatever their
// dtype, and checks each index on the way. The backward splits its work by clouds and channels, never by rows, so no
// two threads add to one target, and every sum has the order of the rows on every run.
#include "common/checks.h"

namespace pointpeft::gather {
namespace {

// Indices of one cloud: everything behind the batch dimension.
int64_t rows_of(const Tensor& idx) {
  int64_t rows = 1;
  for (int64_t d = 1; d < idx.dim(); ++d) rows *= idx.size(d);
  return rows;
}

Tensor gather(const Tensor& features, const Tensor& given_idx) {
  require_dim("features", features, 3);
  require_indices("idx", given_idx, "features", features);
  const Tensor source = torch::stable::contiguous(features), idx = torch::stable::contiguous(given_idx);
  const int64_t batch = source.size(0), n = source.size(1), channels = source.size(2), rows = rows_of(idx);
  std::vector<int64_t> shape;
  for (int64_t d = 0; d < idx.dim(); ++d) shape.push_back(idx.size(d));
  shape.push_back(channels);
  Tensor out = torch::stable::new_empty(source, shape, source.scalar_type());
  const int64_t bytes = channels * source.element_size();
  const char* from = static_cast<const char*>(source.const_data_ptr());
  char* to = static_cast<char*>(out.mutable_data_ptr());
  const int64_t* index = idx.const_data_ptr<int64_t>();
  std::atomic<const int64_t*> bad{nullptr};
  const int64_t grain = std::max<int64_t>(1, 32768 / std::max<int64_t>(1, bytes));
  torch::stable::parallel_for(0, batch * rows, grain, [&](int64_t begin, int64_t end) {
    // A fixed size turns the copy into a few moves: coordinates are by far the most frequent rows.
    const auto copy = [&](auto size) {
      for (int64_t r = begin; r < end; ++r) {
        const int64_t i = index[r];
        if (i < 0 || i >= n) {
          bad = index + r;
          return;
        }
        if (bytes > 0) std::memcpy(to + r * bytes, from + (r / rows * n + i) * bytes, size);  // rows may be empty
      }
    };
    if (bytes == 12)
      copy(std::integral_constant<size_t, 12>{});
    else
      copy(static_cast<size_t>(bytes));
  });
  require(bad == nullptr, "idx must be between 0 and N - 1 = ", n - 1, ", got ", bad ? *bad.load() : 0);
  return out;
}

// Adds each row of grad (B, ..., C) to row idx of its cloud, in the order of the rows: the same sum on every run. The
// work is split by clouds and channels, never by rows.
Tensor gather_backward(const Tensor& given_grad, const Tensor& given_idx, int64_t n) {
  require_gathered(given_grad, given_idx, n);
  const Tensor grad = torch::stable::contiguous(given_grad), idx = torch::stable::contiguous(given_idx);
  const int64_t batch = idx.size(0), channels = grad.size(grad.dim() - 1), rows = rows_of(idx);
  Tensor out = torch::stable::new_empty(grad, {batch, n, channels}, grad.scalar_type());
  const int64_t* index = idx.const_data_ptr<int64_t>();
  const int64_t threads = torch::stable::get_num_threads();
  const int64_t parts = batch >= threads ? 1 : std::max<int64_t>(1, std::min(threads, channels / 16));
  std::atomic<const int64_t*> bad{nullptr};
  dispatch_floating("grad", grad.scalar_type(), [&](auto type) {
    using T = decltype(type);
    using A = Accumulate<T>;
    const T* from = static_cast<const T*>(grad.const_data_ptr());
    T* to = static_cast<T*>(out.mutable_data_ptr());
    torch::stable::parallel_for(0, batch * parts, 1, [&](int64_t begin, int64_t end) {
      std::vector<A> sums;
      for (int64_t unit = begin; unit < end; ++unit) {
        const int64_t b = unit / parts, first = unit % parts * channels / parts;
        const int64_t width = (unit % parts + 1) * channels / parts - first;
        sums.assign(n * width, A(0));
        for (int64_t r = 0; r < rows; ++r) {
          const int64_t i = index[b * rows + r];
          if (i < 0 || i >= n) {
            bad = index + b * rows + r;
            return;
          }
          const T* __restrict source = from + (b * rows + r) * channels + first;
          A* __restrict sum = sums.data() + i * width;
          for (int64_t c = 0; c < width; ++c) sum[c] += static_cast<A>(source[c]);
        }
        for (int64_t i = 0; i < n; ++i)
          for (int64_t c = 0; c < width; ++c)
            to[(b * n + i) * channels + first + c] = static_cast<T>(sums[i * width + c]);
      }
    });
  });
  require(bad == nullptr, "idx must be between 0 and N - 1 = ", n - 1, ", got ", bad ? *bad.load() : 0);
  return out;
}

}  // namespace
}  // namespace pointpeft::gather

STABLE_TORCH_LIBRARY_FRAGMENT(pointpeft, m) {
  m.def("gather(Tensor features, Tensor idx) -> Tensor");
  m.def("gather_backward(Tensor grad, Tensor idx, SymInt n) -> Tensor");
  m.def("gather_backward_sorted(Tensor grad, Tensor sorted, Tensor row_of, SymInt n) -> Tensor");  // on CUDA alone
}

STABLE_TORCH_LIBRARY_IMPL(pointpeft, CPU, m) {
  m.impl("gather", TORCH_BOX(&pointpeft::gather::gather));
  m.impl("gather_backward", TORCH_BOX(&pointpeft::gather::gather_backward));
}
