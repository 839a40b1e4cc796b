// Rows of equal width and the parts that they are summed in, for the passes over rows on the CPU. Sums are taken over
// parts of the rows that do not depend on the number of threads, and joined in order: the same result on every run and
// at every vector level.
#pragma once

#include "checks.h"
#include "levels.h"

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
  require_dtype(name, tensor, dtype_of<T>());
  require_shape(name, tensor, {n, c});
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
  require_dtype(name, tensor, dtype_of<T>());
  if (tensor.dim() < 1 || tensor.numel() != c) fail(name, " must hold ", c, " values, got shape ", shape_text(tensor));
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

inline int64_t parts_of(int64_t n) { return std::max<int64_t>(1, std::min(kParts, n / kPartRows)); }

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

template <class Body>
void dispatch_flag(bool flag, Body&& body) {
  if (flag) return body(std::true_type{});
  body(std::false_type{});
}

// Calls body(T{}, U{}) with the types of a residual stream and of what is added to it: the same, or float and a short
// one.
template <class Body>
void dispatch_residual(const char* stream, ScalarType dtype, const char* branch, ScalarType shorter, Body&& body) {
  dispatch_floating(branch, shorter, [&](auto type) {
    using U = decltype(type);
    if (dtype == shorter) return body(U{}, U{});
    if constexpr (sizeof(U) == 2) {
      require(dtype == ScalarType::Float, stream, " must be float32, or of the type of ", branch);
      body(float{}, U{});
    } else {
      fail(stream, " must be of the type of ", branch);
    }
  });
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

}  // namespace
}  // namespace pointpeft
