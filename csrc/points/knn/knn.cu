// Nearest neighbours on CUDA. One warp stands for one query and keeps its k best keys of distance and index sorted
// across its lanes' registers. What is nearer than the k-th best is rare once a few points have been seen, so such
// points only wait in shared slots, found by a ballot; when 32 wait, a sorting network sorts them and merges them into
// the best. Eight queries of one cloud share a block, and with it the tiles of the cloud in shared memory.
//
// Tiles are rows of channels (kTile points, read once a block: M / kWarps * N loads from L2 in all); a lane computes
// the distance of every 32nd point. Rank 32 j + lane is in best[j]. 64 slots a warp; two barriers a tile, none in the
// selection. No (M, N) matrix except for many channels, whose products query·support are made first (knn_products.cuh).
// k above 128: passes of 128, each past the last one's end.
#include "common/device_checks.h"
#include "knn_products.cuh"
#include "knn_selection.cuh"

namespace pointpeft::knn {
namespace {

constexpr int kWarps = 8;
constexpr int kTile = 1024;                 // points a tile for 3 channels
constexpr int64_t kMostExactChannels = 16;  // above it the distances come from a matrix product
constexpr int kMostAPass = 128;

// A tensor of any floating dtype as the kernels read it.
template <class A>
struct Points {
  const void* data;
  int dtype;  // 0: A itself, 1: half, 2: bfloat16
  int64_t stride_b, stride_n, stride_c;
  __device__ __forceinline__ A at(int64_t offset) const {
    if (dtype == 1) return static_cast<A>(__half2float(static_cast<const __half*>(data)[offset]));
    if (dtype == 2) return static_cast<A>(__bfloat162float(static_cast<const __nv_bfloat16*>(data)[offset]));
    return static_cast<const A*>(data)[offset];
  }
};

template <class A>
struct Problem {
  Points<A> query, support;
  int64_t m, n, k, blocks_a_cloud;
  int channels;
  const int64_t* lengths;
  A* sq_distance;  // null where it is not wanted
  int64_t* idx;
  void* patches;  // support[idx] - query in the dtype of support, null where it is not wanted
  // Where the distances come from a product: query·support of `chunk` queries from `first` on, and the squared norms.
  const A *product, *query_norm, *support_norm;
  int64_t first, chunk;
};

// kChannels 3: coordinates; 0: up to 16 channels; -1: products.
template <class A, int P, int kChannels>
__global__ void __launch_bounds__(kWarps * 32, 2) nearest_kernel(const Problem<A> p) {
  using K = Key<A>;
  __shared__ K slots[kWarps][64];
  __shared__ A tile[kChannels < 0 ? 1 : 3 * kTile];
  __shared__ A queries[kWarps][kMostExactChannels];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int64_t b = blockIdx.x / p.blocks_a_cloud;
  const int64_t among = blockIdx.x % p.blocks_a_cloud * kWarps + warp;
  const int64_t count = kChannels < 0 ? p.chunk : p.m, m = kChannels < 0 ? p.first + among : among;
  const bool active = among < count;  // the same for a whole warp; the others help to load
  const int64_t given = p.lengths ? p.lengths[b] : p.n, length = given < 0 ? 0 : min(given, p.n);
  const int channels = kChannels == 3 ? 3 : p.channels;
  const int points = kChannels == 3 ? kTile : 3 * kTile / max(channels, 1);
  A qx = 0, qy = 0, qz = 0, own = 0;
  const A* product = nullptr;
  if (active) {
    const int64_t offset = b * p.query.stride_b + m * p.query.stride_n;
    if (kChannels < 0) {
      product = p.product + (b * p.chunk + among) * p.n;
      own = p.query_norm[b * p.m + m];
    } else if (kChannels == 3) {
      qx = p.query.at(offset);
      qy = p.query.at(offset + p.query.stride_c);
      qz = p.query.at(offset + 2 * p.query.stride_c);
    } else if (lane < channels) {
      queries[warp][lane] = p.query.at(offset + lane * p.query.stride_c);
    }
  }
  __syncwarp();
  const int64_t output = (b * p.m + m) * p.k;
  K floor = K::make(A(0), 0);  // of this pass: keys below it are out already
  for (int64_t done = 0; done < p.k; done += 32 * P) {
    Selection<P, K> selection(slots[warp], static_cast<int>(min(int64_t{32 * P}, p.k - done)), lane);
    if (kChannels < 0) {
      if (active)
        for (int64_t base = 0; base < length; base += 32) {
          const int64_t i = base + lane;
          A d = 0;
          if (i < length) {
            d = (own + p.support_norm[b * p.n + i]) - 2 * product[i];
            d = d < 0 ? A(0) : d;  // NaN stays
          }
          selection.offer(K::make(d, static_cast<uint32_t>(i)), i < length, floor);
        }
    } else {
      for (int64_t begin = 0; begin < length; begin += points) {
        const int filled = static_cast<int>(min(int64_t{points}, length - begin));
        __syncthreads();
        for (int e = threadIdx.x; e < filled * channels; e += kWarps * 32) {
          const int i = e / channels, c = e % channels;
          tile[c * points + i] =
              p.support.at(b * p.support.stride_b + (begin + i) * p.support.stride_n + c * p.support.stride_c);
        }
        __syncthreads();
        if (!active) continue;
        for (int base = 0; base < filled; base += 32) {
          const int i = base + lane;
          A d = 0;
          if (i < filled) {
            if (kChannels == 3) {
              const A dx = qx - tile[i], dy = qy - tile[kTile + i], dz = qz - tile[2 * kTile + i];
              d = dx * dx + dy * dy + dz * dz;
            } else {
              for (int c = 0; c < channels; ++c) {
                const A difference = queries[warp][c] - tile[c * points + i];
                d += difference * difference;
              }
            }
          }
          selection.offer(K::make(d, static_cast<uint32_t>(begin + i)), i < filled, floor);
        }
      }
    }
    if (!active) continue;
    selection.finish();
#pragma unroll 1
    for (int j = 0; j < P; ++j) {
      const int rank = 32 * j + lane;
      if (rank >= selection.wanted) continue;
      const K key = selection.row(j);
      // Fewer than k points, which nobody can report from here: NaN and point 0.
      const int64_t at = output + done + rank, i = key.index() < p.n ? key.index() : 0;
      if (p.sq_distance) p.sq_distance[at] = key.distance();
      p.idx[at] = i;
      if (kChannels != 3 || p.patches == nullptr) continue;
      const int64_t offset = b * p.support.stride_b + i * p.support.stride_n;
      const A difference[3] = {p.support.at(offset) - qx, p.support.at(offset + p.support.stride_c) - qy,
                               p.support.at(offset + 2 * p.support.stride_c) - qz};
#pragma unroll
      for (int c = 0; c < 3; ++c) {
        if (p.support.dtype == 1)
          static_cast<__half*>(p.patches)[3 * at + c] = __float2half_rn(static_cast<float>(difference[c]));
        else if (p.support.dtype == 2)
          static_cast<__nv_bfloat16*>(p.patches)[3 * at + c] = __float2bfloat16_rn(static_cast<float>(difference[c]));
        else
          static_cast<A*>(p.patches)[3 * at + c] = difference[c];
      }
    }
    // The next pass takes what is past the last key of this one: index + 1 never meets its end, as N < 2^31.
    floor = K::make(selection.limit.distance(), selection.limit.index() + 1);
  }
}

// One warp a point: the sum of squares over its channels.
template <class A>
__global__ void squared_norm_kernel(const A* points, int64_t count, int channels, A* norms) {
  const int64_t i = (static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x) / 32;
  if (i >= count) return;
  A sum = 0;
  for (int c = threadIdx.x % 32; c < channels; c += 32) sum += points[i * channels + c] * points[i * channels + c];
  for (int offset = 16; offset > 0; offset /= 2) sum += __shfl_xor_sync(kAll, sum, offset);
  if (threadIdx.x % 32 == 0) norms[i] = sum;
}

template <class A>
__global__ void __launch_bounds__(kProductThreads) product_kernel(const Products<A> products) {
  __shared__ ProductTiles<A> tiles;
  product_block(products, tiles, blockIdx.x, static_cast<int>(threadIdx.x));
}

// query·support of `chunk` queries from `first` on.
template <class A>
void launch_products(const A* query, const A* support, const Problem<A>& p, int64_t batch, A* out,
                     cudaStream_t stream) {
  const Products<A> products{query, support, p.m, p.n, p.first, p.chunk, p.channels, out};
  const int64_t blocks = batch * products.row_blocks() * products.column_blocks();
  require(blocks <= std::numeric_limits<int32_t>::max(), "query and support are too large for one launch");
  product_kernel<A><<<blocks, kProductThreads, 0, stream>>>(products);
  check_launch("knn");
}

template <class A, int kChannels>
void launch(const Problem<A>& p, int64_t blocks, cudaStream_t stream) {
  if (p.k <= 32)
    nearest_kernel<A, 1, kChannels><<<blocks, kWarps * 32, 0, stream>>>(p);
  else if (p.k <= 64)
    nearest_kernel<A, 2, kChannels><<<blocks, kWarps * 32, 0, stream>>>(p);
  else
    nearest_kernel<A, kMostAPass / 32, kChannels><<<blocks, kWarps * 32, 0, stream>>>(p);
  check_launch("knn");
}

template <class A>
Points<A> points_of(const Tensor& tensor) {
  const ScalarType dtype = tensor.scalar_type();
  const int tag = dtype == ScalarType::Half ? 1 : dtype == ScalarType::BFloat16 ? 2 : 0;
  return {tensor.const_data_ptr(), tag, tensor.stride(0), tensor.stride(1), tensor.stride(2)};
}

template <class A>
void run(Problem<A>& p, const Tensor& query, const Tensor& support, int64_t batch, cudaStream_t stream) {
  const auto blocks = [](int64_t queries) { return (queries + kWarps - 1) / kWarps; };
  if (p.channels <= kMostExactChannels) {
    p.blocks_a_cloud = blocks(p.m);
    if (p.channels == 3)
      launch<A, 3>(p, batch * p.blocks_a_cloud, stream);
    else
      launch<A, 0>(p, batch * p.blocks_a_cloud, stream);
    return;
  }
  const ScalarType dtype = std::is_same_v<A, double> ? ScalarType::Double : ScalarType::Float;
  const Tensor q = torch::stable::contiguous(torch::stable::to(query, dtype));
  const Tensor s = torch::stable::contiguous(torch::stable::to(support, dtype));
  Tensor query_norm = torch::stable::new_empty(q, std::vector<int64_t>{batch, p.m}, dtype);
  Tensor support_norm = torch::stable::new_empty(q, std::vector<int64_t>{batch, p.n}, dtype);
  const auto norms = [&](const Tensor& points, Tensor& out) {
    const int64_t count = points.size(0) * points.size(1);
    squared_norm_kernel<A><<<blocks(count), kWarps * 32, 0, stream>>>(
        static_cast<const A*>(points.const_data_ptr()), count, p.channels, static_cast<A*>(out.mutable_data_ptr()));
    check_launch("knn");
  };
  norms(q, query_norm);
  norms(s, support_norm);
  p.query_norm = static_cast<const A*>(query_norm.const_data_ptr());
  p.support_norm = static_cast<const A*>(support_norm.const_data_ptr());
  const int64_t most = queries_a_product(batch, p.m, p.n);
  for (p.first = 0; p.first < p.m; p.first += most) {
    p.chunk = std::min(most, p.m - p.first);
    Tensor product = torch::stable::new_empty(q, std::vector<int64_t>{batch, p.chunk, p.n}, dtype);
    launch_products(static_cast<const A*>(q.const_data_ptr()), static_cast<const A*>(s.const_data_ptr()), p, batch,
                    static_cast<A*>(product.mutable_data_ptr()), stream);
    p.product = static_cast<const A*>(product.const_data_ptr());
    p.blocks_a_cloud = blocks(p.chunk);
    launch<A, -1>(p, batch * p.blocks_a_cloud, stream);
  }
}

}  // namespace

void nearest(const Tensor& query, const Tensor& support, int64_t k, const std::optional<Tensor>& lengths,
             Tensor* sq_distance, Tensor& idx, Tensor* patches) {
  const int64_t batch = query.size(0), m = query.size(1), n = support.size(1);
  require(n < std::numeric_limits<int32_t>::max(), "support must have fewer than 2^31 points, got ", n);
  require(patches == nullptr || query.size(2) == 3, "patches are made for 3 channels, got ", query.size(2));
  if (batch == 0 || m == 0) return;
  torch::stable::accelerator::DeviceGuard guard(query.get_device_index());
  const cudaStream_t stream = current_stream(query);
  const auto solve = [&](auto type) {
    using A = decltype(type);
    Problem<A> p{points_of<A>(query),
                 points_of<A>(support),
                 m,
                 n,
                 k,
                 0,
                 static_cast<int>(query.size(2)),
                 lengths ? lengths->const_data_ptr<int64_t>() : nullptr,
                 sq_distance ? static_cast<A*>(sq_distance->mutable_data_ptr()) : nullptr,
                 idx.mutable_data_ptr<int64_t>(),
                 patches ? patches->mutable_data_ptr() : nullptr,
                 nullptr,
                 nullptr,
                 nullptr,
                 0,
                 0};
    run<A>(p, query, support, batch, stream);
  };
  if (support.scalar_type() == ScalarType::Double)
    solve(double{});
  else
    solve(float{});
}

namespace {

std::tuple<Tensor, Tensor> knn(const Tensor& query, const Tensor& support, int64_t k,
                               const std::optional<Tensor>& lengths) {
  require_search(query, support, -1, k);
  const std::optional<Tensor> checked = checked_lengths(lengths, "support", support, "k", k);
  require_finite_on_device("query", query, std::nullopt);
  require_finite_on_device("support", support, checked);
  const ScalarType dtype = accumulate_dtype(support.scalar_type());
  Tensor sq_distance = torch::stable::new_empty(support, {query.size(0), query.size(1), k}, dtype);
  Tensor idx = torch::stable::new_empty(support, {query.size(0), query.size(1), k}, ScalarType::Long);
  nearest(query, support, k, checked, &sq_distance, idx, nullptr);
  return {sq_distance, idx};
}

}  // namespace
}  // namespace pointpeft::knn

STABLE_TORCH_LIBRARY_IMPL(pointpeft, CUDA, m) { m.impl("knn", TORCH_BOX(&pointpeft::knn::knn)); }
