// Products of float32 matrices by AMX. Its tiles multiply sixteen times as fast as float32 vectors, but only bfloat16,
// which keeps 8 of a float's 24 bits; so each factor is written as three bfloat16 parts whose sum is exactly the
// factor. The product of two such sums has nine products of parts, and the six largest are summed in float32: the three
// left out are at most 2^-24 of the product of the factors, which is what one rounding of float32 may lose. Six
// products in the place of one take three eighths of the time of float32 vectors at best.
//
// Layout: the result is made in blocks of 32 rows and 32 columns, which four tiles hold; the other four tiles hold a
// part of 32 rows of the left factor and of 32 columns of the right one, for 32 channels, which is a step. A factor is
// packed before it is multiplied, step by step within a block, in a step part by part, two tiles a part: 6 KiB. A
// frozen weight is packed once and given by the caller; in the right factor two channels of a column stand side by
// side, as the tiles want it.
// Ownership: a task owns some blocks of rows times some blocks of columns and packs its rows for itself, at most
// kBlocks blocks times kSteps steps at a time, which stay in the second-level cache while the blocks of columns pass
// by. No two tasks write to one block, and nothing waits but for the packing of the weight.
// Bytes: a weight's parts are read once a task, a row's values once a task, and the result is written once for kSteps
// steps. Subnormal numbers count as zero in the tiles, so the lower parts of values below 2^-110 do; a value that
// bfloat16 rounds to infinity makes the product say that it is not done here.
#include "common/tiles.h"
#include "gelu.h"

namespace pointpeft::linear {
namespace {

#if defined(POINTPEFT_HAS_AMX)
constexpr int64_t kSplit = 3;    // parts of a factor
constexpr int64_t kBlock = 32;   // rows and columns of a result at a time: two by two tiles
constexpr int64_t kDepth = 32;   // of a step
constexpr int64_t kSteps = 16;   // taken at once, at most: so much of both factors stays in the second-level cache
constexpr int64_t kBlocks = 12;  // of rows, likewise
constexpr int64_t kFewest = 3;   // of rows, where there are columns to share out
constexpr int64_t kAhead = 3;    // steps that the weight is called for before it is packed
// In a loop of these products and nothing else, on a Granite Rapids, the first store of a tile after 0.6 µs without one
// takes 0.25 µs, as long as two steps, even where everything lies in the first-level cache. A store of a tile into one
// line, each so many steps, avoids it.
constexpr int64_t kStoreInterval = 2;
constexpr int64_t kOne = kTile * kDepth;        // values of a tile
constexpr int64_t kPacked = kSplit * 2 * kOne;  // of a step of a block: part by part, two tiles each
constexpr int64_t kLines = kPacked * 2 / 64;    // of the cache

int64_t in_parts(int64_t n, int64_t size) { return (n + size - 1) / size; }

// The parts of 32 values.
POINTPEFT_AMX inline void split(__m512 low, __m512 high, __m512i* parts) {
  for (int64_t p = 0; p < kSplit; ++p) {
    parts[p] = reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(high, low));
    if (p + 1 == kSplit) return;
    const __m256i first = _mm512_castsi512_si256(parts[p]), second = _mm512_extracti64x4_epi64(parts[p], 1);
    low = _mm512_sub_ps(low, _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(first), 16)));
    high = _mm512_sub_ps(high, _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(second), 16)));
  }
}

// Values that bfloat16 holds, or all of them with infinities and NaN among them.
struct Range {
  __m512i most;
  POINTPEFT_AMX Range() : most(_mm512_setzero_si512()) {}
  POINTPEFT_AMX void see(__m512 x) {
    most = _mm512_max_epu32(most, _mm512_and_si512(_mm512_castps_si512(x), _mm512_set1_epi32(0x7FFFFFFF)));
  }
  // From the middle between the largest finite bfloat16 and the next power of two on, rounding gives infinity.
  POINTPEFT_AMX bool holds() const { return _mm512_cmpge_epu32_mask(most, _mm512_set1_epi32(0x7F7F8000)) == 0; }
};

// A block of rows of the left factor, its tiles row by row.
POINTPEFT_AMX bool pack_left(const float* x, int64_t stride, int64_t rows, int64_t depth, BFloat16* out) {
  Range range;
  const int64_t steps = in_parts(depth, kDepth);
  for (int64_t r = 0; r < kBlock; ++r)
    for (int64_t s = 0; s < steps; ++s) {
      __m512i parts[kSplit] = {_mm512_setzero_si512(), _mm512_setzero_si512(), _mm512_setzero_si512()};
      if (r < rows) {
        const float* from = x + r * stride + s * kDepth;
        _mm_prefetch(from + 2 * stride, _MM_HINT_T0);
        _mm_prefetch(from + 2 * stride + 16, _MM_HINT_T0);
        const __m512 low = _mm512_maskz_loadu_ps(lanes_before(depth, s * kDepth), from);
        const __m512 high = _mm512_maskz_loadu_ps(lanes_before(depth, s * kDepth + 16), from + 16);
        range.see(low), range.see(high);
        split(low, high, parts);
      }
      for (int64_t p = 0; p < kSplit; ++p)
        _mm512_store_si512(out + s * kPacked + (2 * p + r / kTile) * kOne + r % kTile * kDepth, parts[p]);
    }
  return range.holds();
}

// A block of columns of the right factor, which are rows of the weight with their channels side by side: a row of a
// tile holds two channels of each.
POINTPEFT_AMX bool pack_rows(const float* weight, int64_t stride, int64_t rows, int64_t depth, BFloat16* out) {
  Range range;
  for (int64_t s = 0; s * kDepth < depth; ++s) {
    const __mmask16 low = lanes_before(depth, s * kDepth), high = lanes_before(depth, s * kDepth + 16);
    for (int64_t half = 0; half < 2; ++half) {
      __m512i parts[kSplit][kTile] = {};
      for (int64_t r = 0; r < kTile && half * kTile + r < rows; ++r) {
        const float* from = weight + (half * kTile + r) * stride + s * kDepth;
        _mm_prefetch(from + kAhead * kDepth, _MM_HINT_T0);
        _mm_prefetch(from + kAhead * kDepth + 16, _MM_HINT_T0);
        const __m512 a = _mm512_maskz_loadu_ps(low, from), b = _mm512_maskz_loadu_ps(high, from + 16);
        range.see(a), range.see(b);
        __m512i own[kSplit];
        split(a, b, own);
        for (int64_t p = 0; p < kSplit; ++p) parts[p][r] = own[p];
      }
      for (int64_t p = 0; p < kSplit; ++p) {
        transpose(parts[p]);
        for (int64_t r = 0; r < kTile; ++r)
          _mm512_store_si512(out + s * kPacked + (2 * p + half) * kOne + r * kDepth, parts[p][r]);
      }
    }
  }
  return range.holds();
}

// As `pack_rows` where the rows of the weight lie side by side, channel by channel.
POINTPEFT_AMX bool pack_columns(const float* weight, int64_t stride, int64_t rows, int64_t depth, BFloat16* out) {
  Range range;
  const __m512i pairs = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6, 21,
                                         5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
  for (int64_t k = 0; k < in_parts(depth, kDepth) * kDepth; k += 2)
    for (int64_t half = 0; half < 2; ++half) {
      const __mmask16 there = lanes_before(rows, half * kTile);
      const float* from = weight + k * stride + half * kTile;
      _mm_prefetch(from + 2 * kAhead * stride, _MM_HINT_T0);
      _mm_prefetch(from + (2 * kAhead + 1) * stride, _MM_HINT_T0);
      const __m512 a = _mm512_maskz_loadu_ps(k < depth ? there : 0, from);
      const __m512 b = _mm512_maskz_loadu_ps(k + 1 < depth ? there : 0, from + stride);
      range.see(a), range.see(b);
      __m512i parts[kSplit];
      split(a, b, parts);
      for (int64_t p = 0; p < kSplit; ++p)
        _mm512_store_si512(out + k / kDepth * kPacked + (2 * p + half) * kOne + k % kDepth / 2 * kDepth,
                           _mm512_permutexvar_epi16(pairs, parts[p]));
    }
  return range.holds();
}

// What a product calls into the second-level cache, beside the lines of its result, for those after it: lines of the
// next block of columns a step, and in each step its channels of some rows.
struct Ahead {
  const char* right;
  int64_t lines;
  const float* x;
  int64_t stride, rows;
};

// out [32, 32] += left right; in the place of what `out` holds, `fresh` [32] begins each row where it is given.
POINTPEFT_AMX inline void multiply(const BFloat16* left, const BFloat16* right, int64_t steps, float* out,
                                   int64_t stride, const float* fresh, Ahead ahead) {
  char* c = reinterpret_cast<char*>(out);
  const int64_t bytes = stride * 4;
  alignas(64) float line[kTile];
  __asm__ volatile("" ::: "memory");  // the loads of tiles do not say that they read memory
  if (fresh != nullptr) {             // a row for all
    _tile_loadd(0, fresh, 0);
    _tile_loadd(1, fresh + kTile, 0);
    _tile_loadd(2, fresh, 0);
    _tile_loadd(3, fresh + kTile, 0);
  } else {
    _tile_loadd(0, c, bytes);
    _tile_loadd(1, c + 64, bytes);
    _tile_loadd(2, c + kTile * bytes, bytes);
    _tile_loadd(3, c + kTile * bytes + 64, bytes);
  }
// Numbers of tiles are part of an instruction's name.
#define POINTPEFT_LEFT(PART)                  \
  _tile_loadd(4, left + 2 * PART * kOne, 64); \
  _tile_loadd(5, left + (2 * PART + 1) * kOne, 64)
#define POINTPEFT_RIGHT(PART)                  \
  _tile_loadd(6, right + 2 * PART * kOne, 64); \
  _tile_loadd(7, right + (2 * PART + 1) * kOne, 64)
#define POINTPEFT_MULTIPLY \
  _tile_dpbf16ps(0, 4, 6); \
  _tile_dpbf16ps(1, 4, 7); \
  _tile_dpbf16ps(2, 5, 6); \
  _tile_dpbf16ps(3, 5, 7)
  for (int64_t s = 0; s < steps; ++s, left += kPacked, right += kPacked) {
    for (int64_t i = 0; i < ahead.lines; ++i, ahead.right += 64) _mm_prefetch(ahead.right, _MM_HINT_T1);
    for (int64_t i = 0; i < ahead.rows; ++i)
      for (int64_t half = 0; half < 2; ++half)
        _mm_prefetch(ahead.x + i * ahead.stride + s * kDepth + half * 16, _MM_HINT_T1);
    for (int64_t r = kBlock * s / steps; r < kBlock * (s + 1) / steps; ++r) {
      _mm_prefetch(c + r * bytes, _MM_HINT_T1);
      _mm_prefetch(c + r * bytes + 64, _MM_HINT_T1);
    }
    if (s % kStoreInterval == kStoreInterval - 1) _tile_stored(0, line, 0);
    POINTPEFT_LEFT(0);
    POINTPEFT_RIGHT(2);
    POINTPEFT_MULTIPLY;
    POINTPEFT_RIGHT(1);
    POINTPEFT_MULTIPLY;
    POINTPEFT_RIGHT(0);
    POINTPEFT_MULTIPLY;
    POINTPEFT_LEFT(2);
    POINTPEFT_MULTIPLY;
    POINTPEFT_LEFT(1);
    POINTPEFT_MULTIPLY;
    POINTPEFT_RIGHT(1);
    POINTPEFT_MULTIPLY;
  }
#undef POINTPEFT_LEFT
#undef POINTPEFT_RIGHT
#undef POINTPEFT_MULTIPLY
  _tile_stored(0, c, bytes);
  _tile_stored(1, c + 64, bytes);
  _tile_stored(2, c + kTile * bytes, bytes);
  _tile_stored(3, c + kTile * bytes + 64, bytes);
  __asm__ volatile("" ::: "memory");
}

// Memory of a thread, kept for its next call: fresh memory of this size would be mapped page by page at each.
struct Kept {
  Aligned<BFloat16> values;
  int64_t count = 0;
  BFloat16* of(int64_t needed) {
    if (needed > count) values = aligned_array<BFloat16>(needed), count = needed;
    return values.get();
  }
};

struct Weight {
  const float* data;
  int64_t m, k, stride;  // rows, channels
  bool by_rows;          // the channels of a row lie side by side
  int64_t steps() const { return in_parts(k, kDepth); }
  int64_t panels() const { return in_parts(m, kBlock); }
  int64_t packed() const { return panels() * steps() * kPacked; }
};

// False where a value is too large for bfloat16.
bool pack(const Weight& w, BFloat16* parts) {
  std::atomic<bool> fits = true;
  torch::stable::parallel_for(0, w.panels(), 1, [&](int64_t begin, int64_t end) {
    for (int64_t p = begin; p < end; ++p) {
      const float* from = w.data + p * kBlock * (w.by_rows ? w.stride : 1);
      const int64_t rows = std::min(kBlock, w.m - p * kBlock);
      if (!(w.by_rows ? pack_rows : pack_columns)(from, w.stride, rows, w.k, parts + p * w.steps() * kPacked))
        fits = false;
    }
  });
  return fits;
}

// y = GELU(gamma ⊙ y + beta) for y [32, 32].
POINTPEFT_AMX void scale_shift_gelu(const float* gamma, const float* beta, float* y, int64_t stride) {
  for (int64_t r = 0; r < kBlock; ++r, y += stride)
    for (int64_t i = 0; i < kBlock; ++i) y[i] = gelu(gamma[i] * y[i] + beta[i]);
}

struct Product {
  const float* x;
  float* out;
  int64_t n, m, k, x_stride, out_stride;  // rows, channels of the result, channels
  const BFloat16* right;                  // the weight's parts
  // Whole blocks: what the result begins with, and what GELU is preceded by, where there is one.
  const float *bias, *gamma, *beta;
};

struct Span {
  int64_t begin, end;
  int64_t size() const { return end - begin; }
};

Span part(int64_t n, int64_t parts, int64_t i) { return {n * i / parts, n * (i + 1) / parts}; }

// How the blocks of a result are shared out in tasks, each of up to `kBlocks` blocks of rows.
struct Grid {
  int64_t blocks, panels, by_rows, by_columns;
  // As many tasks as threads, or a multiple of it. A task packs its rows for itself, so columns are cut where there are
  // too few rows alone.
  Grid(int64_t n, int64_t m, int64_t threads) : blocks(in_parts(n, kBlock)), panels(in_parts(m, kBlock)) {
    by_rows = std::clamp(threads, in_parts(blocks, kBlocks), in_parts(blocks, kFewest));
    by_columns = std::min(panels, in_parts(threads, by_rows));
    if (by_columns == 1) by_rows = std::min(blocks, in_parts(by_rows, threads) * threads);
  }
  int64_t tasks() const { return by_rows * by_columns; }
  Span rows(int64_t task) const { return part(blocks, by_rows, task / by_columns); }
  Span columns(int64_t task) const { return part(panels, by_columns, task % by_columns); }
};

// A task of those before `until`; false where a value of x is too large for bfloat16.
bool multiply_task(const Product& f, const Grid& grid, int64_t task, int64_t until, BFloat16* left) {
  const Span rows = grid.rows(task), columns = grid.columns(task);
  const int64_t steps = in_parts(f.k, kDepth), calls = rows.size() * columns.size();
  alignas(64) float edge[kBlock * kBlock] = {};
  for (int64_t s = 0; s < steps; s += kSteps) {
    const int64_t count = std::min(kSteps, steps - s);
    for (int64_t b = rows.begin; b < rows.end; ++b)
      if (!pack_left(f.x + b * kBlock * f.x_stride + s * kDepth, f.x_stride, std::min(kBlock, f.n - b * kBlock),
                     std::min(count * kDepth, f.k - s * kDepth), left + (b - rows.begin) * count * kPacked))
        return false;
    // What is packed next: further channels of these rows, or the rows of the next task.
    const bool deeper = s + kSteps < steps;
    const Span coming = deeper ? rows : task + 1 < until ? grid.rows(task + 1) : Span{0, 0};
    const int64_t first = coming.begin * kBlock, wanted = std::min(f.n, coming.end * kBlock) - first;
    Ahead ahead;
    ahead.lines = in_parts(kLines, rows.size());
    ahead.stride = f.x_stride;
    int64_t call = 0;
    for (int64_t p = columns.begin; p < columns.end; ++p)
      for (int64_t b = rows.begin; b < rows.end; ++b, ++call) {
        const BFloat16 *a = left + (b - rows.begin) * count * kPacked, *w = f.right + (p * steps + s) * kPacked;
        ahead.right = reinterpret_cast<const char*>(w + steps * kPacked) + (b - rows.begin) * ahead.lines * count * 64;
        if (p + 1 == columns.end) ahead.lines = 0;
        const Span now = part(wanted, calls, call);
        ahead.x = f.x + (first + now.begin) * f.x_stride + (deeper ? (s + kSteps) * kDepth : 0);
        ahead.rows = now.size();
        const float* fresh = s == 0 ? f.bias + p * kBlock : nullptr;
        const bool closes = f.gamma != nullptr && s + kSteps >= steps;
        float* out = f.out + b * kBlock * f.out_stride + p * kBlock;
        const int64_t height = std::min(kBlock, f.n - b * kBlock), width = std::min(kBlock, f.m - p * kBlock);
        if (height == kBlock && width == kBlock) {
          multiply(a, w, count, out, f.out_stride, fresh, ahead);
          if (closes) scale_shift_gelu(f.gamma + p * kBlock, f.beta + p * kBlock, out, f.out_stride);
          continue;
        }
        if (s > 0)
          for (int64_t r = 0; r < height; ++r) std::copy_n(out + r * f.out_stride, width, edge + r * kBlock);
        multiply(a, w, count, edge, kBlock, fresh, ahead);
        if (closes) scale_shift_gelu(f.gamma + p * kBlock, f.beta + p * kBlock, edge, kBlock);
        for (int64_t r = 0; r < height; ++r) std::copy_n(edge + r * kBlock, width, out + r * f.out_stride);
      }
  }
  return true;
}

bool multiply_all(const Product& f) {
  const Grid grid(f.n, f.m, torch::stable::get_num_threads());
  std::atomic<bool> fits = true;
  torch::stable::parallel_for(0, grid.tasks(), 1, [&](int64_t begin, int64_t end) {
    thread_local Kept kept;
    BFloat16* left = kept.of(kBlocks * std::min(in_parts(f.k, kDepth), kSteps) * kPacked);
    const Tiles tiles;
    for (int64_t task = begin; task < end; ++task)
      if (!multiply_task(f, grid, task, end, left)) fits = false;
  });
  return fits;
}

bool is_float(const Tensor& t, int64_t dim) { return t.dim() == dim && t.scalar_type() == ScalarType::Float; }

const float* floats(const Tensor& t) { return static_cast<const float*>(t.const_data_ptr()); }

// Whether AMX may be used now, and its kernels read such a weight.
std::optional<Weight> readable(const Tensor& weight) {
  require(is_float(weight, 2), "weight must be a matrix of float32");
  const bool by_rows = weight.stride(1) == 1;
  if (cpu_level() < CpuLevel::amx || weight.numel() == 0 || !(by_rows || weight.stride(0) == 1)) return std::nullopt;
  return Weight{floats(weight), weight.size(0), weight.size(1), weight.stride(by_rows ? 0 : 1), by_rows};
}

// The vector in whole blocks; zero behind it, and everywhere without one.
std::vector<float> in_blocks(const char* name, const std::optional<Tensor>& vector, int64_t m) {
  std::vector<float> values(in_parts(m, kBlock) * kBlock);
  if (!vector) return values;
  require(is_float(*vector, 1) && vector->size(0) == m, name, " must hold ", m, " values of float32");
  for (int64_t i = 0; i < m; ++i) values[i] = floats(*vector)[i * vector->stride(0)];
  return values;
}
#endif

// Writes the parts of a weight, for `linear` to be given beside it; false where it is not done, as there.
bool split_weight(const Tensor& weight, Tensor parts) {
#if defined(POINTPEFT_HAS_AMX)
  const std::optional<Weight> w = readable(weight);
  if (!w) return false;
  require(parts.scalar_type() == ScalarType::BFloat16 && parts.is_contiguous() && parts.numel() == w->packed() &&
              reinterpret_cast<uintptr_t>(parts.const_data_ptr()) % 64 == 0,
          "parts must be ", w->packed(), " values of bfloat16 from a cache line on");
  return pack(*w, static_cast<BFloat16*>(parts.mutable_data_ptr()));
#else
  return false;
#endif
}

// out (N, O) = x (N, C) weightᵀ + bias in float32, or GELU(gamma ⊙ (x weightᵀ + bias) + beta), where that is done here;
// else false, and `out` holds anything. `parts` are those of the weight, which is split anew without them.
bool linear(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& parts,
            const std::optional<Tensor>& bias, const std::optional<Tensor>& gamma, const std::optional<Tensor>& beta,
            Tensor out) {
#if defined(POINTPEFT_HAS_AMX)
  const std::optional<Weight> w = readable(weight);
  if (!w) return false;
  const auto [data, m, k, stride, by_rows] = *w;
  require(is_float(x, 2) && x.size(1) == k, "x must be a matrix of float32 with ", k, " channels");
  const int64_t n = x.size(0);
  require(is_float(out, 2) && out.size(0) == n && out.size(1) == m && (m == 1 || out.stride(1) == 1),
          "out must be float32 (", n, ", ", m, ") with its channels side by side");
  require(gamma.has_value() == beta.has_value(), "gamma and beta must be given together");
  require(!parts || (parts->scalar_type() == ScalarType::BFloat16 && parts->is_contiguous() &&
                     parts->numel() == w->packed() && reinterpret_cast<uintptr_t>(parts->const_data_ptr()) % 64 == 0),
          "parts must be ", w->packed(), " values of bfloat16 from a cache line on");
  if (n == 0 || (k > 1 && x.stride(1) != 1)) return false;
  constexpr int64_t kMostKept = int64_t{4} << 20;  // values
  thread_local Kept kept;
  Aligned<BFloat16> own;
  const BFloat16* right = parts ? static_cast<const BFloat16*>(parts->const_data_ptr()) : nullptr;
  if (right == nullptr) {
    if (w->packed() > kMostKept) own = aligned_array<BFloat16>(w->packed());
    BFloat16* made = own ? own.get() : kept.of(w->packed());
    if (!pack(*w, made)) return false;
    right = made;
  }
  const auto first = in_blocks("bias", bias, m), scale = in_blocks("gamma", gamma, m);
  const auto shift = in_blocks("beta", beta, m);
  return multiply_all({floats(x), static_cast<float*>(out.mutable_data_ptr()), n, m, k, x.stride(0), out.stride(0),
                       right, first.data(), gamma ? scale.data() : nullptr, shift.data()});
#else
  return false;
#endif
}

}  // namespace
}  // namespace pointpeft::linear

STABLE_TORCH_LIBRARY_FRAGMENT(pointpeft, m) {
  m.def("_split_weight(Tensor weight, Tensor(a!) parts) -> bool");
  m.def(
      "_linear(Tensor x, Tensor weight, Tensor? parts, Tensor? bias, Tensor? gamma, Tensor? beta, Tensor(a!) out) -> "
      "bool");
}

STABLE_TORCH_LIBRARY_IMPL(pointpeft, CPU, m) {
  m.impl("_split_weight", TORCH_BOX(&pointpeft::linear::split_weight));
  m.impl("_linear", TORCH_BOX(&pointpeft::linear::linear));
}
