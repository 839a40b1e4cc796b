// The algorithms of two classic extensions, restated for comparison: pointnet2_ops' furthest point sampling and ball
// query (erikwijmans/Pointnet2_PyTorch), and KNN_CUDA's neighbours (unlimblue/KNN_CUDA, after V. Garcia). Their launch
// shapes, their passes over memory and their barriers are kept, and so is what they leave out: 32-bit indices, float32,
// no checks. Built by benchmarks/classic.py when a benchmark on a GPU asks for it; no part of the package.
#include "common/pointpeft.h"

namespace pointpeft {
namespace {

// ---- pointnet2_ops ----

// The power of two at or below `work`, at most 512.
int classic_threads(int64_t work) {
  int threads = 1;
  while (threads < 512 && threads * 2 <= work) threads *= 2;
  return threads;
}

// One block a cloud. Coordinates and distances come from global memory in every step; the farthest is found by a tree
// in shared memory with a barrier a level. Points within 1e-3 of the origin (squared) are passed over, of equal
// distances the lower place in the tree wins, and no barrier stands between the read of the winner and the next write.
template <int kThreads>
__global__ void sampling_kernel(int n, int samples, const float* __restrict__ xyz, float* __restrict__ nearest,
                                int* __restrict__ idx) {
  __shared__ float distance[kThreads];
  __shared__ int which[kThreads];
  const int t = threadIdx.x;
  xyz += blockIdx.x * n * 3;
  nearest += blockIdx.x * n;
  idx += blockIdx.x * samples;
  int pick = 0;
  if (t == 0) idx[0] = pick;
  __syncthreads();
  for (int m = 1; m < samples; ++m) {
    const float cx = xyz[pick * 3], cy = xyz[pick * 3 + 1], cz = xyz[pick * 3 + 2];
    float farthest = -1;
    int at = 0;
    for (int i = t; i < n; i += kThreads) {
      const float x = xyz[i * 3], y = xyz[i * 3 + 1], z = xyz[i * 3 + 2];
      if (x * x + y * y + z * z <= 1e-3) continue;
      const float d = min((x - cx) * (x - cx) + (y - cy) * (y - cy) + (z - cz) * (z - cz), nearest[i]);
      nearest[i] = d;
      if (d > farthest) {
        farthest = d;
        at = i;
      }
    }
    distance[t] = farthest;
    which[t] = at;
    __syncthreads();
#pragma unroll
    for (int half = kThreads / 2; half > 0; half /= 2) {
      if (t < half) {
        const float other = distance[t + half];
        if (other > distance[t]) {
          which[t] = which[t + half];
          distance[t] = other;
        }
      }
      __syncthreads();
    }
    pick = which[0];
    if (t == 0) idx[m] = pick;
  }
}

Tensor classic_sample(const Tensor& xyz, int64_t samples) {
  torch::stable::accelerator::DeviceGuard guard(xyz.get_device_index());
  const int64_t batch = xyz.size(0), n = xyz.size(1);
  Tensor idx = torch::stable::new_zeros(xyz, {batch, samples}, ScalarType::Int);
  Tensor nearest = torch::stable::new_empty(xyz, {batch, n}, ScalarType::Float);
  torch::stable::fill_(nearest, 1e10);
  const cudaStream_t stream = current_stream(xyz);
  const auto run = [&](auto threads) {
    constexpr int kThreads = decltype(threads)::value;
    sampling_kernel<kThreads>
        <<<batch, kThreads, 0, stream>>>(static_cast<int>(n), static_cast<int>(samples), xyz.const_data_ptr<float>(),
                                         nearest.mutable_data_ptr<float>(), idx.mutable_data_ptr<int32_t>());
    check_launch("classic sampling");
  };
  const int threads = classic_threads(n);
  if (threads >= 512)
    run(std::integral_constant<int, 512>{});
  else if (threads >= 256)
    run(std::integral_constant<int, 256>{});
  else if (threads >= 128)
    run(std::integral_constant<int, 128>{});
  else
    run(std::integral_constant<int, 64>{});
  return idx;
}

// One block a cloud, a thread a query: it tests the points one after another until it has k.
__global__ void ball_kernel(int n, int m, float radius, int k, const float* __restrict__ query,
                            const float* __restrict__ support, int* __restrict__ idx) {
  query += blockIdx.x * m * 3;
  support += blockIdx.x * n * 3;
  idx += blockIdx.x * m * k;
  for (int j = threadIdx.x; j < m; j += blockDim.x) {
    const float qx = query[j * 3], qy = query[j * 3 + 1], qz = query[j * 3 + 2];
    int found = 0;
    for (int i = 0; i < n && found < k; ++i) {
      const float dx = qx - support[i * 3], dy = qy - support[i * 3 + 1], dz = qz - support[i * 3 + 2];
      if (dx * dx + dy * dy + dz * dz >= radius * radius) continue;
      if (found == 0)
        for (int s = 0; s < k; ++s) idx[j * k + s] = i;
      idx[j * k + found++] = i;
    }
  }
}

Tensor classic_ball_query(const Tensor& query, const Tensor& support, double radius, int64_t k) {
  torch::stable::accelerator::DeviceGuard guard(query.get_device_index());
  const int64_t batch = query.size(0), m = query.size(1);
  Tensor idx = torch::stable::new_zeros(query, {batch, m, k}, ScalarType::Int);
  ball_kernel<<<batch, classic_threads(m), 0, current_stream(query)>>>(
      static_cast<int>(support.size(1)), static_cast<int>(m), static_cast<float>(radius), static_cast<int>(k),
      query.const_data_ptr<float>(), support.const_data_ptr<float>(), idx.mutable_data_ptr<int32_t>());
  check_launch("classic ball query");
  return idx;
}

// ---- KNN_CUDA: one cloud a call, channels first ----

constexpr int kTile = 16;

// The whole matrix of squared distances, (N, M): a block makes 16 x 16 of it from tiles of 16 channels.
__global__ void distance_kernel(const float* support, int n, const float* query, int m, int channels,
                                float* sq_distance) {
  __shared__ float s[kTile][kTile], q[kTile][kTile];
  const int tx = threadIdx.x, ty = threadIdx.y, s0 = blockIdx.y * kTile, q0 = blockIdx.x * kTile;
  float sum = 0;
  for (int c0 = 0; c0 < channels; c0 += kTile) {
    const bool real = c0 + ty < channels;
    s[ty][tx] = real && s0 + tx < n ? support[(c0 + ty) * n + s0 + tx] : 0;
    q[ty][tx] = real && q0 + tx < m ? query[(c0 + ty) * m + q0 + tx] : 0;
    __syncthreads();
    for (int c = 0; c < kTile; ++c) sum += (s[c][ty] - q[c][tx]) * (s[c][ty] - q[c][tx]);
    __syncthreads();
  }
  if (s0 + ty < n && q0 + tx < m) sq_distance[(s0 + ty) * m + q0 + tx] = sum;
}

// A thread a query sorts the k smallest to the top of its column, by insertion, in global memory.
__global__ void insertion_kernel(float* sq_distance, long long* idx, int m, int n, int k) {
  const int j = blockIdx.x * blockDim.x + threadIdx.x;
  if (j >= m) return;
  float* column = sq_distance + j;
  long long* place = idx + j;
  const auto insert = [&](float d, int row, int last) {  // into rows 0 .. last, of which the last one falls out
    int to = last;
    for (int a = 0; a < last; ++a)
      if (column[a * m] > d) {
        to = a;
        break;
      }
    for (int a = last; a > to; --a) {
      column[a * m] = column[(a - 1) * m];
      place[a * m] = place[(a - 1) * m];
    }
    column[to * m] = d;
    place[to * m] = row;
  };
  place[0] = 0;
  for (int row = 1; row < k; ++row) insert(column[row * m], row, row);
  float most = column[(k - 1) * m];
  for (int row = k; row < n; ++row) {
    const float d = column[row * m];
    if (d >= most) continue;
    insert(d, row, k - 1);
    most = column[(k - 1) * m];
  }
}

__global__ void root_kernel(float* sq_distance, int m, int k) {
  const int j = blockIdx.x * blockDim.x + threadIdx.x, row = blockIdx.y * blockDim.y + threadIdx.y;
  if (j < m && row < k) sq_distance[row * m + j] = sqrtf(sq_distance[row * m + j]);
}

// support (C, N), query (C, M): distances (N, M), of which the first k rows count, and indices (k, M).
std::tuple<Tensor, Tensor> classic_knn(const Tensor& support, const Tensor& query, int64_t k) {
  torch::stable::accelerator::DeviceGuard guard(query.get_device_index());
  const int n = static_cast<int>(support.size(1)), m = static_cast<int>(query.size(1)), rows = static_cast<int>(k);
  Tensor distance = torch::stable::new_empty(query, {support.size(1), query.size(1)}, ScalarType::Float);
  Tensor idx = torch::stable::new_empty(query, {k, query.size(1)}, ScalarType::Long);
  float* d = distance.mutable_data_ptr<float>();
  const cudaStream_t stream = current_stream(query);
  const auto tiles = [](int count) { return (count + kTile - 1) / kTile; };
  const dim3 tile(kTile, kTile);
  distance_kernel<<<dim3(tiles(m), tiles(n)), tile, 0, stream>>>(
      support.const_data_ptr<float>(), n, query.const_data_ptr<float>(), m, static_cast<int>(support.size(0)), d);
  check_launch("classic distances");
  insertion_kernel<<<(m + 255) / 256, 256, 0, stream>>>(
      d, reinterpret_cast<long long*>(idx.mutable_data_ptr<int64_t>()), m, n, rows);
  check_launch("classic insertion");
  root_kernel<<<dim3(tiles(m), tiles(rows)), tile, 0, stream>>>(d, m, rows);
  check_launch("classic roots");
  return {distance, idx};
}

}  // namespace
}  // namespace pointpeft

STABLE_TORCH_LIBRARY(pointpeft_classic, m) {
  m.def("furthest_point_sample(Tensor xyz, int num_samples) -> Tensor");
  m.def("ball_query(Tensor query, Tensor support, float radius, int k) -> Tensor");
  m.def("knn(Tensor support, Tensor query, int k) -> (Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(pointpeft_classic, CUDA, m) {
  m.impl("furthest_point_sample", TORCH_BOX(&pointpeft::classic_sample));
  m.impl("ball_query", TORCH_BOX(&pointpeft::classic_ball_query));
  m.impl("knn", TORCH_BOX(&pointpeft::classic_knn));
}
