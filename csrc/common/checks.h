// What the operations ask of their tensors. Kernels index memory by shapes, strides and values, so they look at all of
// these themselves: checks in Python see neither direct calls of torch.ops.pointpeft nor compiled or exported graphs.
// Values are looked at on the CPU always; on CUDA, where that waits for the device, under POINTPEFT_CHECK=1 alone, and
// otherwise the kernels clamp what they index by.
#pragma once

#include "pointpeft.h"

namespace pointpeft {

template <class T>
constexpr ScalarType dtype_of() {
  if constexpr (std::is_same_v<T, float>) return ScalarType::Float;
  if constexpr (std::is_same_v<T, double>) return ScalarType::Double;
  if constexpr (std::is_same_v<T, Half>) return ScalarType::Half;
  if constexpr (std::is_same_v<T, BFloat16>) return ScalarType::BFloat16;
}

inline ScalarType accumulate_dtype(ScalarType dtype) {
  return dtype == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

inline std::string name_of(ScalarType dtype) {
  switch (dtype) {
    case ScalarType::Float:
      return "float32";
    case ScalarType::Double:
      return "float64";
    case ScalarType::Half:
      return "float16";
    case ScalarType::BFloat16:
      return "bfloat16";
    case ScalarType::Long:
      return "int64";
    case ScalarType::Int:
      return "int32";
    case ScalarType::Short:
      return "int16";
    case ScalarType::Char:
      return "int8";
    case ScalarType::Byte:
      return "uint8";
    case ScalarType::Bool:
      return "bool";
    default:
      return "another dtype";
  }
}

// "(2, 5, 3)", and "*" for a negative size.
template <class Sizes>
std::string shape_text(const Sizes& sizes) {
  std::string text;
  for (const int64_t size : sizes) text += (text.empty() ? "" : ", ") + (size < 0 ? "*" : std::to_string(size));
  return "(" + text + ")";
}

inline std::string shape_text(const Tensor& tensor) {
  std::vector<int64_t> sizes;
  for (int64_t d = 0; d < tensor.dim(); ++d) sizes.push_back(tensor.size(d));
  return shape_text(sizes);
}

// The text of an error is made only where there is one: an operation on small clouds takes some ten microseconds.
inline void require_dim(const char* name, const Tensor& tensor, int64_t dim) {
  if (tensor.dim() != dim) fail(name, " must have ", dim, " dimensions, got shape ", shape_text(tensor));
}

// A negative size stands for any.
inline void require_shape(const char* name, const Tensor& tensor, std::initializer_list<int64_t> shape) {
  bool same = tensor.dim() == static_cast<int64_t>(shape.size());
  for (int64_t d = 0; same && d < tensor.dim(); ++d) same = shape.begin()[d] < 0 || tensor.size(d) == shape.begin()[d];
  if (!same) fail(name, " must have shape ", shape_text(shape), ", got ", shape_text(tensor));
}

inline void require_dtype(const char* name, const Tensor& tensor, ScalarType dtype) {
  const ScalarType got = tensor.scalar_type();
  if (got != dtype) fail(name, " must be ", name_of(dtype), ", got ", name_of(got));
}

inline void require_floating(const char* name, const Tensor& tensor) {
  const ScalarType got = tensor.scalar_type();
  if (got != ScalarType::Float && got != ScalarType::Double && got != ScalarType::Half && got != ScalarType::BFloat16)
    fail(name, " must be float32, float64, float16 or bfloat16, got ", name_of(got));
}

// Both tensors are on one device. The dispatcher takes the CUDA kernels where any argument is on a GPU, so only those
// have to look: CPU kernels get CPU tensors.
inline void require_device([[maybe_unused]] const char* name, [[maybe_unused]] const Tensor& tensor,
                           [[maybe_unused]] const char* other_name, [[maybe_unused]] const Tensor& other) {
#if defined(USE_CUDA)
  const int64_t index = tensor.get_device_index(), other_index = other.get_device_index();  // -1 on the CPU
  if (index == other_index) return;
  const auto place = [](int64_t i) { return i < 0 ? std::string("cpu") : "cuda:" + std::to_string(i); };
  fail(name, " is on ", place(index), ", but ", other_name, " is on ", place(other_index));
#endif
}

// One device and dtype.
inline void require_same(const char* name, const Tensor& tensor, const char* other_name, const Tensor& other) {
  require_device(name, tensor, other_name, other);
  const ScalarType dtype = tensor.scalar_type(), other_dtype = other.scalar_type();
  if (dtype != other_dtype) fail(name, " is ", name_of(dtype), ", but ", other_name, " is ", name_of(other_dtype));
}

// [B, N, channels] of a floating dtype; negative channels for any.
inline void require_clouds(const char* name, const Tensor& tensor, int64_t channels) {
  require_floating(name, tensor);
  require_dim(name, tensor, 3);
  if (channels >= 0 && tensor.size(2) != channels)
    fail(name, " must have ", channels, " entries in its last dimension, got shape ", shape_text(tensor));
}

inline void require_count(const char* name, int64_t value, int64_t most) {
  if (value < 1 || value > most) fail(name, " must be between 1 and N = ", most, ", got ", value);
}

// Whether values may be looked at, which waits for a GPU.
inline bool looks_at_values() {
#if defined(USE_CUDA)
  const char* wish = std::getenv("POINTPEFT_CHECK");
  return wish != nullptr && std::string_view(wish) == "1";
#else
  return true;
#endif
}

// The tensor's values side by side in memory that this function's caller can read.
inline Tensor on_host(const Tensor& tensor) {
#if defined(USE_CUDA)
  return torch::stable::contiguous(
      torch::stable::to(tensor, torch::stable::Device(torch::headeronly::DeviceType::CPU)));
#else
  return torch::stable::contiguous(tensor);
#endif
}

// `lengths` [B] of the clouds of `of` [B, N, ...] as the kernels read them, or none.
inline std::optional<Tensor> checked_lengths(const std::optional<Tensor>& lengths, const char* of_name,
                                             const Tensor& of, const char* least_name, int64_t least) {
  if (!lengths) return std::nullopt;
  require_dtype("lengths", *lengths, ScalarType::Long);
  require_shape("lengths", *lengths, {of.size(0)});
  require_device("lengths", *lengths, of_name, of);
  if (looks_at_values()) {
    const Tensor values = on_host(*lengths);
    const int64_t* value = values.const_data_ptr<int64_t>();
    for (int64_t b = 0; b < of.size(0); ++b)
      if (value[b] < least || value[b] > of.size(1))
        fail("lengths must be between ", least_name, " = ", least, " and N = ", of.size(1), ", got ", value[b]);
  }
  return torch::stable::contiguous(*lengths);
}

// `starts` [B], or `start` of all clouds, as the kernels read them: indices into the first `lengths` points.
inline std::optional<Tensor> checked_starts(const std::optional<Tensor>& starts, int64_t start, const char* of_name,
                                            const Tensor& of, const std::optional<Tensor>& lengths) {
  const int64_t batch = of.size(0), n = of.size(1);
  if (starts) {
    require_dtype("start", *starts, ScalarType::Long);
    require_shape("start", *starts, {batch});
    require_device("start", *starts, of_name, of);
  } else if (start < 0 || start >= n) {
    fail("start must be between 0 and N - 1 = ", n - 1, ", got ", start);
  }
  if (looks_at_values() && (starts || lengths)) {
    std::optional<Tensor> first, length;
    if (starts) first = on_host(*starts);
    if (lengths) length = on_host(*lengths);
    for (int64_t b = 0; b < batch; ++b) {
      const int64_t value = first ? first->const_data_ptr<int64_t>()[b] : start;
      const int64_t end = length ? length->const_data_ptr<int64_t>()[b] : n;
      if (value < 0 || value >= end)
        fail("start must be between 0 and each cloud's length - 1 = ", end - 1, ", got ", value);
    }
  }
  if (!starts) return std::nullopt;
  return torch::stable::contiguous(*starts);
}

// What furthest_point_sample may be given, with lengths and starts as its kernels read them.
struct Sampling {
  std::optional<Tensor> lengths, starts;
};

inline Sampling checked_sampling(const Tensor& xyz, const char* count_name, int64_t count,
                                 const std::optional<Tensor>& lengths, const std::optional<Tensor>& starts,
                                 int64_t start, double min_sq_norm) {
  require_clouds("xyz", xyz, 3);
  require_count(count_name, count, xyz.size(1));
  require(min_sq_norm >= 0, "min_sq_norm must be at least 0, got ", min_sq_norm);
  Sampling checked;
  checked.lengths = checked_lengths(lengths, "xyz", xyz, count_name, count);
  checked.starts = checked_starts(starts, start, "xyz", xyz, checked.lengths);
  return checked;
}

// As `checked_sampling`, where every cloud has groups and the points of a group.
inline Sampling checked_grouping(const Tensor& xyz, int64_t num_groups, int64_t group_size,
                                 const std::optional<Tensor>& lengths, const std::optional<Tensor>& starts,
                                 int64_t start, double min_sq_norm) {
  require_clouds("xyz", xyz, 3);
  require_count("group_size", group_size, xyz.size(1));
  const char* longest = group_size > num_groups ? "group_size" : "num_groups";
  const auto length = checked_lengths(lengths, "xyz", xyz, longest, std::max(group_size, num_groups));
  return checked_sampling(xyz, "num_groups", num_groups, length, starts, start, min_sq_norm);
}

// What knn and ball_query may be given.
inline void require_search(const Tensor& query, const Tensor& support, int64_t channels, int64_t k) {
  require_clouds("query", query, channels);
  require_clouds("support", support, channels);
  require_same("support", support, "query", query);
  if (query.size(0) != support.size(0) || query.size(2) != support.size(2))
    fail("query and support must agree in B and C, got shapes ", shape_text(query), " and ", shape_text(support));
  require(query.size(2) > 0, "query must have at least 1 channel, got none");
  require_count("k", k, support.size(1));
}

// Indices [B, ...] into clouds of `of` [B, N, ...]; their values are the kernel's to check.
inline void require_indices(const char* name, const Tensor& idx, const char* of_name, const Tensor& of) {
  require_dtype(name, idx, ScalarType::Long);
  require_device(name, idx, of_name, of);
  if (idx.dim() == 0 || idx.size(0) != of.size(0))
    fail(name, " must have shape (", of.size(0), ", ...), got ", shape_text(idx));
}

// A gradient of gathered rows [B, ..., C], whose indices are [B, ...].
inline void require_gathered(const Tensor& grad, const Tensor& idx, int64_t n) {
  require_floating("grad", grad);
  require(n >= 0, "n must be at least 0, got ", n);
  bool same = idx.dim() > 0 && grad.dim() == idx.dim() + 1;
  for (int64_t d = 0; same && d < idx.dim(); ++d) same = grad.size(d) == idx.size(d);
  if (!same) fail("grad must have the shape of idx, ", shape_text(idx), ", and channels, got ", shape_text(grad));
  require_indices("idx", idx, "grad", grad);
}

// What aggregate_neighbors may be given: weights are of the type that sums are taken in, and go with the mode
// `weighted` (3) alone.
inline void require_pooling(const Tensor& idx, const std::optional<Tensor>& weights, int64_t mode, const char* of_name,
                            const Tensor& of) {
  require_indices("idx", idx, of_name, of);
  require_dim("idx", idx, 3);
  require(idx.size(2) > 0, "idx must have shape (B, G, S) with S >= 1, got S = 0");
  require(0 <= mode && mode <= 3, "mode must be 0 to 3, got ", mode);
  require(weights.has_value() == (mode == 3), "weights must be given for mode 3, and for no other, got mode ", mode);
  if (!weights) return;
  require_shape("weights", *weights, {idx.size(0), idx.size(1), idx.size(2)});
  require_dtype("weights", *weights, accumulate_dtype(of.scalar_type()));
  require_device("weights", *weights, of_name, of);
}

// A gradient of pooled groups [B, G, C], and its argmax where a maximum was pooled.
inline void require_pooled(const Tensor& grad, const Tensor& idx, const std::optional<Tensor>& weights,
                           const std::optional<Tensor>& argmax, int64_t n, int64_t mode) {
  require_clouds("grad", grad, -1);
  require_pooling(idx, weights, mode, "grad", grad);
  require_shape("grad", grad, {idx.size(0), idx.size(1), -1});
  require(n >= 0, "n must be at least 0, got ", n);
  require(mode != 0 || argmax.has_value(), "argmax must be given for the maximum");
  if (mode != 0) return;
  const ScalarType dtype = argmax->scalar_type();
  if (dtype != ScalarType::Byte && dtype != ScalarType::Int)
    fail("argmax must be uint8 or int32, got ", name_of(dtype));
  require_shape("argmax", *argmax, {grad.size(0), grad.size(1), grad.size(2)});
  require_device("argmax", *argmax, "grad", grad);
}

// What the gradient of the weights of a pooling is made of.
inline void require_pooled_weights(const Tensor& grad, const Tensor& features, const Tensor& idx) {
  require_clouds("grad", grad, -1);
  require_clouds("features", features, -1);
  require_same("features", features, "grad", grad);
  require_indices("idx", idx, "features", features);
  require_dim("idx", idx, 3);
  require_shape("grad", grad, {idx.size(0), idx.size(1), features.size(2)});
}

// What chamfer_distance may be given.
inline void require_pair(const Tensor& a, const Tensor& b) {
  require_clouds("a", a, 3);
  require_clouds("b", b, 3);
  require_same("b", b, "a", a);
  require(a.size(0) == b.size(0), "b must have as many clouds as a, ", a.size(0), ", got ", b.size(0));
  require(a.size(1) > 0 && b.size(1) > 0, "a and b must have at least one point, got ", a.size(1), " and ", b.size(1));
}

// What belongs to the points of one side: the gradient of their distances, and which point of the other is nearest.
inline void require_side(const char* grad_name, const Tensor& grad, const char* idx_name, const Tensor& idx,
                         const Tensor& points) {
  require_shape(grad_name, grad, {points.size(0), points.size(1)});
  require_dtype(grad_name, grad, accumulate_dtype(points.scalar_type()));
  require_device(grad_name, grad, "a", points);
  require_shape(idx_name, idx, {points.size(0), points.size(1)});
  require_dtype(idx_name, idx, ScalarType::Long);
  require_device(idx_name, idx, "a", points);
}

}  // namespace pointpeft
