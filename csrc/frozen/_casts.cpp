// Whether a kept bfloat16 copy of a float32 tensor is still what rounding the tensor gives. Weights are written in many
// ways that no counter sees (through `.data`, by another library, from another process), so every value is looked at:
// rounded in a register and compared with the copy, which the product that follows reads from the cache then. A byte of
// memory is read once and none is written; making the copy anew writes it, mostly into fresh pages.
#include "common/levels.h"

namespace pointpeft::casts {
namespace {

constexpr int64_t kBlock = 4096;         // values between two looks at whether a difference was found
constexpr int64_t kGrain = 16 * kBlock;  // values that are worth a thread

// Round to nearest, ties to even. A NaN may compare as different from its own rounding: then it is rounded again.
POINTPEFT_INLINE bool equal(const uint32_t* __restrict whole, const uint16_t* __restrict cast, int64_t n) {
  uint32_t difference = 0;
  for (int64_t i = 0; i < n; ++i) {
    const uint32_t bits = whole[i];
    difference |= ((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16) ^ cast[i];
  }
  return difference == 0;
}

bool is_cast(const Tensor& whole, const Tensor& cast) {
  require(whole.scalar_type() == ScalarType::Float, "whole must be float32");
  require(cast.scalar_type() == ScalarType::BFloat16, "cast must be bfloat16");
  require(whole.is_contiguous() && cast.is_contiguous(), "whole and cast must be contiguous");
  require(whole.numel() == cast.numel(), "cast must have ", whole.numel(), " values as whole, got ", cast.numel());
  const auto* from = static_cast<const uint32_t*>(whole.const_data_ptr());
  const auto* to = static_cast<const uint16_t*>(cast.const_data_ptr());
  const auto is_equal = dispatch_level([](auto level) { return decltype(level)::template compiled<equal>; });
  std::atomic<bool> same{true};
  torch::stable::parallel_for(0, whole.numel(), kGrain, [&](int64_t begin, int64_t end) {
    for (int64_t at = begin; at < end && same.load(std::memory_order_relaxed); at += kBlock)
      if (!is_equal(from + at, to + at, std::min(kBlock, end - at))) same.store(false, std::memory_order_relaxed);
  });
  return same.load();
}

}  // namespace
}  // namespace pointpeft::casts

STABLE_TORCH_LIBRARY_FRAGMENT(pointpeft, m) { m.def("_is_cast(Tensor whole, Tensor cast) -> bool"); }

STABLE_TORCH_LIBRARY_IMPL(pointpeft, CPU, m) { m.impl("_is_cast", TORCH_BOX(&pointpeft::casts::is_cast)); }
