// Ball query on the CPU: the queries are shared out to the threads; 64 support points are tested at a time, into one
// bit mask, from x, y, z rows that stay in the cache, and a query stops at its k-th find.
#include "common/checks.h"
#include "common/load.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace pointpeft::ball_query {
namespace {

constexpr int64_t kBlock = 64;                // points tested at a time
constexpr int64_t kGrain = int64_t(1) << 17;  // pairs that are worth a thread: about 10 us

// Bit i: whether point i of the block is nearer than the radius. NaN, which pads the rows, never is.
template <class A>
uint64_t inside_portable(const A* x, const A* y, const A* z, A qx, A qy, A qz, A sq_radius) {
  uint64_t mask = 0;
  for (int i = 0; i < kBlock; ++i) {
    const A dx = qx - x[i], dy = qy - y[i], dz = qz - z[i];
    mask |= uint64_t(dx * dx + dy * dy + dz * dz < sq_radius) << i;
  }
  return mask;
}

#if defined(__x86_64__)
POINTPEFT_AVX2 uint64_t inside_avx2(const float* x, const float* y, const float* z, float qx, float qy, float qz,
                                    float sq_radius) {
  uint64_t mask = 0;
  for (int i = 0; i < kBlock; i += 8) {
    const __m256 dx = _mm256_sub_ps(_mm256_set1_ps(qx), _mm256_loadu_ps(x + i));
    const __m256 dy = _mm256_sub_ps(_mm256_set1_ps(qy), _mm256_loadu_ps(y + i));
    const __m256 dz = _mm256_sub_ps(_mm256_set1_ps(qz), _mm256_loadu_ps(z + i));
    const __m256 d = _mm256_add_ps(_mm256_add_ps(_mm256_mul_ps(dx, dx), _mm256_mul_ps(dy, dy)), _mm256_mul_ps(dz, dz));
    const int bits = _mm256_movemask_ps(_mm256_cmp_ps(d, _mm256_set1_ps(sq_radius), _CMP_LT_OQ));
    mask |= uint64_t(uint32_t(bits)) << i;
  }
  return mask;
}

POINTPEFT_AVX512 uint64_t inside_avx512(const float* x, const float* y, const float* z, float qx, float qy, float qz,
                                        float sq_radius) {
  uint64_t mask = 0;
  for (int i = 0; i < kBlock; i += 16) {
    const __m512 dx = _mm512_sub_ps(_mm512_set1_ps(qx), _mm512_loadu_ps(x + i));
    const __m512 dy = _mm512_sub_ps(_mm512_set1_ps(qy), _mm512_loadu_ps(y + i));
    const __m512 dz = _mm512_sub_ps(_mm512_set1_ps(qz), _mm512_loadu_ps(z + i));
    const __m512 d = _mm512_add_ps(_mm512_add_ps(_mm512_mul_ps(dx, dx), _mm512_mul_ps(dy, dy)), _mm512_mul_ps(dz, dz));
    mask |= uint64_t(_mm512_cmp_ps_mask(d, _mm512_set1_ps(sq_radius), _CMP_LT_OQ)) << i;
  }
  return mask;
}
#endif

template <class A>
using Inside = uint64_t (*)(const A*, const A*, const A*, A, A, A, A);

template <class Level, class A>
constexpr Inside<A> kInside = inside_portable<A>;
#if defined(__x86_64__)
template <>
constexpr Inside<float> kInside<Avx2, float> = inside_avx2;
template <>
constexpr Inside<float> kInside<Avx512, float> = inside_avx512;
#endif

// Writes the first k points inside the ball, in index order; the first one fills what is left, 0 if there is none.
template <class A>
void query_one(Inside<A> inside, const A* rows, int64_t padded, A qx, A qy, A qz, A sq_radius, int64_t k,
               int64_t* out) {
  const A *x = rows, *y = rows + padded, *z = rows + 2 * padded;
  int64_t found = 0;
  for (int64_t i = 0; i < padded && found < k; i += kBlock) {
    uint64_t mask = inside(x + i, y + i, z + i, qx, qy, qz, sq_radius);
    for (; mask != 0 && found < k; mask &= mask - 1) out[found++] = i + __builtin_ctzll(mask);
  }
  std::fill(out + found, out + k, found > 0 ? out[0] : 0);
}

Tensor ball_query(const Tensor& query, const Tensor& support, double radius, int64_t k) {
  require_search(query, support, 3, k);
  require(radius > 0, "radius must be a number above 0, got ", radius);
  const int64_t batch = query.size(0), m = query.size(1), n = support.size(1);
  Tensor idx = torch::stable::new_empty(query, {batch, m, k}, ScalarType::Long);
  int64_t* out = idx.mutable_data_ptr<int64_t>();
  const int64_t padded = (n + kBlock - 1) / kBlock * kBlock;
  std::atomic<bool> finite_query{true}, finite_support{true};
  dispatch_floating("query", query.scalar_type(), [&](auto type) {
    using T = decltype(type);
    using A = Accumulate<T>;
    const T* queries = static_cast<const T*>(query.const_data_ptr());
    const T* points = static_cast<const T*>(support.const_data_ptr());
    const int64_t query_b = query.stride(0), query_m = query.stride(1), query_c = query.stride(2);
    const int64_t support_b = support.stride(0), support_n = support.stride(1), support_c = support.stride(2);
    const A sq_radius = A(radius) * A(radius);
    const Inside<A> inside = dispatch_float_level<A>([](auto level) { return kInside<decltype(level), A>; });
    torch::stable::parallel_for(0, batch * m, kGrain / n + 1, [&](int64_t begin, int64_t end) {
      std::unique_ptr<A[]> rows(new A[3 * padded]);
      for (int64_t i = begin, loaded = -1; i < end; ++i) {
        const int64_t b = i / m;
        if (b != loaded &&
            !load_padded_rows<T>({points + b * support_b, support_n, support_c}, 3, n, padded, rows.get())) {
          finite_support = false;
          return;
        }
        loaded = b;
        const T* q = queries + b * query_b + (i % m) * query_m;
        const A qx = A(q[0]), qy = A(q[query_c]), qz = A(q[2 * query_c]);
        if (!(std::isfinite(qx) && std::isfinite(qy) && std::isfinite(qz))) {
          finite_query = false;
          return;
        }
        query_one(inside, rows.get(), padded, qx, qy, qz, sq_radius, k, out + i * k);
      }
    });
  });
  require(finite_query, "query must be finite, got NaN or infinite coordinates");
  require(finite_support, "support must be finite, got NaN or infinite coordinates");
  return idx;
}

}  // namespace
}  // namespace pointpeft::ball_query

STABLE_TORCH_LIBRARY_FRAGMENT(pointpeft, m) {
  m.def("ball_query(Tensor query, Tensor support, float radius, int k) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(pointpeft, CPU, m) { m.impl("ball_query", TORCH_BOX(&pointpeft::ball_query::ball_query)); }
