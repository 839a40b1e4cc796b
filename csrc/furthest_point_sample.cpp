// Farthest point sampling on the CPU: one cloud a thread, coordinates as x, y, z rows that stay in the cache.
#include "pointpeft.h"

namespace pointpeft {
namespace {

// Picks num_samples points; `distance` holds the squared distance to the nearest pick, -1 for what is never picked.
template <class A>
void sample_cloud(const A* x, const A* y, const A* z, A* distance, int64_t length, int64_t num_samples, int64_t start,
                  A min_sq_norm, int64_t* idx) {
  for (int64_t i = 0; i < length; ++i) {
    const A sq_norm = x[i] * x[i] + y[i] * y[i] + z[i] * z[i];
    distance[i] = min_sq_norm > 0 && sq_norm <= min_sq_norm ? A(-1) : std::numeric_limits<A>::infinity();
  }
  int64_t pick = start;
  for (int64_t m = 0; m < num_samples; ++m) {
    idx[m] = pick;
    const A cx = x[pick], cy = y[pick], cz = z[pick];
    A best = A(-2);
    for (int64_t i = 0; i < length; ++i) {
      const A dx = x[i] - cx, dy = y[i] - cy, dz = z[i] - cz;
      const A d = dx * dx + dy * dy + dz * dz;
      distance[i] = std::min(distance[i], d);
      best = std::max(best, distance[i]);
    }
    pick = std::find(distance, distance + length, best) - distance;
  }
}

}  // namespace

Tensor furthest_point_sample(const Tensor& xyz, int64_t num_samples, const std::optional<Tensor>& lengths,
                             const std::optional<Tensor>& starts, int64_t start, double min_sq_norm) {
  const int64_t batch = xyz.size(0), n = xyz.size(1);
  Tensor idx = torch::stable::new_empty(xyz, {batch, num_samples}, ScalarType::Long);
  int64_t* out = idx.mutable_data_ptr<int64_t>();
  const int64_t* length_of = lengths ? lengths->const_data_ptr<int64_t>() : nullptr;
  const int64_t* start_of = starts ? starts->const_data_ptr<int64_t>() : nullptr;
  std::atomic<bool> finite{true};
  dispatch_floating("xyz", xyz.scalar_type(), [&](auto type) {
    using T = decltype(type);
    using A = Accumulate<T>;
    const T* data = static_cast<const T*>(xyz.const_data_ptr());
    const int64_t stride_b = xyz.stride(0), stride_n = xyz.stride(1), stride_c = xyz.stride(2);
    torch::stable::parallel_for(0, batch, 1, [&](int64_t begin, int64_t end) {
      std::unique_ptr<A[]> rows(new A[4 * n]);
      A *x = rows.get(), *y = x + n, *z = y + n, *distance = z + n;
      for (int64_t b = begin; b < end; ++b) {
        const int64_t length = length_of ? length_of[b] : n;
        if (!load_rows(data + b * stride_b, stride_n, stride_c, length, x, y, z)) {
          finite = false;
          return;
        }
        sample_cloud(x, y, z, distance, length, num_samples, start_of ? start_of[b] : start, A(min_sq_norm),
                     out + b * num_samples);
      }
    });
  });
  require(finite, "xyz must be finite, got NaN or infinite coordinates");
  return idx;
}

}  // namespace pointpeft

STABLE_TORCH_LIBRARY_FRAGMENT(pointpeft, m) {
  m.def(
      "furthest_point_sample(Tensor xyz, int num_samples, Tensor? lengths, Tensor? starts, int start, "
      "float min_sq_norm) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(pointpeft, CPU, m) {
  m.impl("furthest_point_sample", TORCH_BOX(&pointpeft::furthest_point_sample));
}
