// Ball query on CUDA: one warp a query. A step tests kAhead * 32 points in index order: the loads of all kAhead are
// under way together, then each 32 are voted into a mask and written at the popcount of the lanes below. A warp stops
// at its k-th find. No shared memory, no barrier; the warps of a block read the same cloud, mostly from L1.
#include "common/device_checks.h"

namespace pointpeft::ball_query {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;
constexpr int kAhead = 4;
constexpr int64_t kMostBlocks = 1 << 20;  // beyond that, warps take several queries

struct Strides {
  int64_t b, n, c;
};

template <class T, class A>
__global__ void __launch_bounds__(kThreads)
    ball_query_kernel(const T* query, Strides query_stride, const T* support, Strides support_stride, int64_t queries,
                      int64_t m, int64_t n, A sq_radius, int64_t k, int64_t* idx) {
  const int lane = threadIdx.x % 32;
  const int64_t step = int64_t(gridDim.x) * kWarps;
  for (int64_t i = int64_t(blockIdx.x) * kWarps + threadIdx.x / 32; i < queries; i += step) {
    const int64_t b = i / m;
    const T* q = query + b * query_stride.b + (i - b * m) * query_stride.n;
    const A qx = A(q[0]), qy = A(q[query_stride.c]), qz = A(q[2 * query_stride.c]);
    const T* cloud = support + b * support_stride.b;
    int64_t* out = idx + i * k;
    int64_t found = 0, first = 0;
    for (int64_t base = 0; base < n && found < k; base += 32 * kAhead) {  // the same in all lanes of the warp
      bool inside[kAhead];
#pragma unroll
      for (int u = 0; u < kAhead; ++u) {
        const int64_t j = base + 32 * u + lane;
        inside[u] = false;
        if (j < n) {
          const T* p = cloud + j * support_stride.n;
          const A dx = qx - A(p[0]), dy = qy - A(p[support_stride.c]), dz = qz - A(p[2 * support_stride.c]);
          inside[u] = dx * dx + dy * dy + dz * dz < sq_radius;  // false for anything not finite
        }
      }
#pragma unroll
      for (int u = 0; u < kAhead; ++u) {
        const unsigned mask = __ballot_sync(0xffffffffu, inside[u]);
        if (mask == 0) continue;
        if (found == 0) first = base + 32 * u + __ffs(mask) - 1;
        const int64_t place = found + __popc(mask & ((1u << lane) - 1));
        if (inside[u] && place < k) out[place] = base + 32 * u + lane;
        found += __popc(mask);
      }
    }
    for (int64_t s = found + lane; s < k; s += 32) out[s] = first;
  }
}

Tensor ball_query(const Tensor& query, const Tensor& support, double radius, int64_t k) {
  require_search(query, support, 3, k);
  require(radius > 0, "radius must be a number above 0, got ", radius);
  require_finite_on_device("query", query, std::nullopt);
  require_finite_on_device("support", support, std::nullopt);
  const int64_t batch = query.size(0), m = query.size(1), n = support.size(1);
  Tensor idx = torch::stable::new_empty(query, {batch, m, k}, ScalarType::Long);
  const int64_t queries = batch * m;
  if (queries == 0) return idx;
  torch::stable::accelerator::DeviceGuard guard(query.get_device_index());
  const cudaStream_t stream = current_stream(query);
  const unsigned blocks = static_cast<unsigned>(std::min(kMostBlocks, (queries + kWarps - 1) / kWarps));
  dispatch_floating("query", query.scalar_type(), [&](auto type) {
    using T = decltype(type);
    using A = Accumulate<T>;
    const Strides query_stride{query.stride(0), query.stride(1), query.stride(2)};
    const Strides support_stride{support.stride(0), support.stride(1), support.stride(2)};
    ball_query_kernel<T, A><<<blocks, kThreads, 0, stream>>>(
        static_cast<const T*>(query.const_data_ptr()), query_stride, static_cast<const T*>(support.const_data_ptr()),
        support_stride, queries, m, n, A(radius) * A(radius), k, idx.mutable_data_ptr<int64_t>());
    check_launch("ball_query");
  });
  return idx;
}

}  // namespace
}  // namespace pointpeft::ball_query

STABLE_TORCH_LIBRARY_IMPL(pointpeft, CUDA, m) { m.impl("ball_query", TORCH_BOX(&pointpeft::ball_query::ball_query)); }
