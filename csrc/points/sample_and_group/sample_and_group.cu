// Farthest points, their nearest neighbours and the neighbours' offsets, as one operation on CUDA: the neighbours'
// kernel writes the centred patches itself.
#include "common/device_checks.h"

namespace pointpeft::sample_and_group {
namespace {

// One thread a coordinate. T is only moved: an unsigned integer of its size.
template <class T>
__global__ void center_kernel(const T* xyz, int64_t stride_b, int64_t stride_n, int64_t stride_c, const int64_t* idx,
                              int64_t groups, int64_t count, T* centers) {
  const int64_t e = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (e >= count) return;
  centers[e] = xyz[e / 3 / groups * stride_b + idx[e / 3] * stride_n + e % 3 * stride_c];
}

template <class T>
void copy_centers(const Tensor& xyz, const Tensor& idx, Tensor& centers, cudaStream_t stream) {
  const int64_t count = centers.numel(), threads = 256;
  if (count == 0) return;
  center_kernel<T><<<(count + threads - 1) / threads, threads, 0, stream>>>(
      static_cast<const T*>(xyz.const_data_ptr()), xyz.stride(0), xyz.stride(1), xyz.stride(2),
      idx.const_data_ptr<int64_t>(), idx.size(1), count, static_cast<T*>(centers.mutable_data_ptr()));
  check_launch("sample_and_group");
}

std::tuple<Tensor, Tensor, Tensor, Tensor> sample_and_group(const Tensor& xyz, int64_t num_groups, int64_t group_size,
                                                            const std::optional<Tensor>& lengths,
                                                            const std::optional<Tensor>& starts, int64_t start,
                                                            double min_sq_norm) {
  const Sampling checked = checked_grouping(xyz, num_groups, group_size, lengths, starts, start, min_sq_norm);
  const int64_t batch = xyz.size(0);
  torch::stable::accelerator::DeviceGuard guard(xyz.get_device_index());
  Tensor center_idx =
      furthest_point_sample::sample(xyz, num_groups, checked.lengths, checked.starts, start, min_sq_norm);
  Tensor centers = torch::stable::new_empty(xyz, {batch, num_groups, 3}, xyz.scalar_type());
  Tensor neighbor_idx = torch::stable::new_empty(xyz, {batch, num_groups, group_size}, ScalarType::Long);
  Tensor patches = torch::stable::new_empty(xyz, {batch, num_groups, group_size, 3}, xyz.scalar_type());
  const cudaStream_t stream = current_stream(xyz);
  switch (xyz.element_size()) {
    case 2:
      copy_centers<uint16_t>(xyz, center_idx, centers, stream);
      break;
    case 4:
      copy_centers<uint32_t>(xyz, center_idx, centers, stream);
      break;
    default:
      copy_centers<uint64_t>(xyz, center_idx, centers, stream);
  }
  knn::nearest(centers, xyz, group_size, checked.lengths, nullptr, neighbor_idx, &patches);
  return {patches, centers, center_idx, neighbor_idx};
}

}  // namespace
}  // namespace pointpeft::sample_and_group

STABLE_TORCH_LIBRARY_IMPL(pointpeft, CUDA, m) {
  m.impl("sample_and_group", TORCH_BOX(&pointpeft::sample_and_group::sample_and_group));
}
