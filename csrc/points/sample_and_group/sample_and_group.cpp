// Farthest points, their nearest neighbours and the neighbours' offsets, as one operation on the CPU.
#include "common/checks.h"

namespace pointpeft::sample_and_group {
namespace {

template <class T>
void copy_centers(const Tensor& xyz, const int64_t* idx, int64_t groups, T* centers) {
  const T* data = static_cast<const T*>(xyz.const_data_ptr());
  for (int64_t b = 0; b < xyz.size(0); ++b)
    for (int64_t g = 0; g < groups; ++g)
      for (int64_t c = 0; c < 3; ++c)
        *centers++ = data[b * xyz.stride(0) + idx[b * groups + g] * xyz.stride(1) + c * xyz.stride(2)];
}

std::tuple<Tensor, Tensor, Tensor, Tensor> sample_and_group(const Tensor& xyz, int64_t num_groups, int64_t group_size,
                                                            const std::optional<Tensor>& lengths,
                                                            const std::optional<Tensor>& starts, int64_t start,
                                                            double min_sq_norm) {
  const Sampling checked = checked_grouping(xyz, num_groups, group_size, lengths, starts, start, min_sq_norm);
  const int64_t batch = xyz.size(0);
  Tensor center_idx =
      furthest_point_sample::sample(xyz, num_groups, checked.lengths, checked.starts, start, min_sq_norm);
  Tensor centers = torch::stable::new_empty(xyz, {batch, num_groups, 3}, xyz.scalar_type());
  Tensor neighbor_idx = torch::stable::new_empty(xyz, {batch, num_groups, group_size}, ScalarType::Long);
  Tensor patches = torch::stable::new_empty(xyz, {batch, num_groups, group_size, 3}, xyz.scalar_type());
  dispatch_floating("xyz", xyz.scalar_type(), [&](auto type) {
    using T = decltype(type);
    copy_centers(xyz, center_idx.const_data_ptr<int64_t>(), num_groups, static_cast<T*>(centers.mutable_data_ptr()));
  });
  knn::nearest(centers, xyz, group_size, checked.lengths, nullptr, neighbor_idx, &patches);
  return {patches, centers, center_idx, neighbor_idx};
}

}  // namespace
}  // namespace pointpeft::sample_and_group

STABLE_TORCH_LIBRARY_FRAGMENT(pointpeft, m) {
  m.def(
      "sample_and_group(Tensor xyz, int num_groups, int group_size, Tensor? lengths, Tensor? starts, int start, "
      "float min_sq_norm) -> (Tensor, Tensor, Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(pointpeft, CPU, m) {
  m.impl("sample_and_group", TORCH_BOX(&pointpeft::sample_and_group::sample_and_group));
}
