// A block on the host: a coroutine a thread, which meet at every shuffle and barrier, and CUDA's words for what they do
// there.
#pragma once

#include <ucontext.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <vector>

#define __device__
#define __host__
#define __forceinline__ inline

using std::fmax;
using std::fmin;
using std::ilogb;
using std::isfinite;
using std::ldexp;
using std::max;
using std::min;

namespace lanes {

constexpr int kLanes = 32, kMostWarps = 8, kMost = kMostWarps * kLanes;
constexpr size_t kStack = 64 << 10;
inline ucontext_t scheduler, context[kMost];
inline int threads, current;  // of the block that runs: how many, and whose turn it is
inline bool done[kMost];
inline std::function<void(int)> body;
// What a thread gives to a meeting; two sets, as a lane may give to the next one before another has read this one.
inline uint64_t slots[2][kMost];
inline int round_of[kMost];
inline int64_t arrived[2], barriers_of[kMost];

inline void meet() { swapcontext(&context[current], &scheduler); }

inline void enter() {
  body(current);
  done[current] = true;
  swapcontext(&context[current], &scheduler);
}

// Runs `work(thread)` on the threads of so many warps, each up to its next meeting point, warp by warp; in a warp in
// the order of lanes `first`, first + 1, ... (mod 32). So the lanes of a warp stay in step.
inline void run(std::function<void(int)> work, int first = 0, int warps = 1) {
  static std::vector<char> stacks(kMost * kStack);
  body = std::move(work);
  threads = warps * kLanes;
  arrived[0] = arrived[1] = 0;
  for (int thread = 0; thread < threads; ++thread) {
    done[thread] = false;
    round_of[thread] = 0;
    barriers_of[thread] = 0;
    getcontext(&context[thread]);
    context[thread].uc_stack.ss_sp = stacks.data() + thread * kStack;
    context[thread].uc_stack.ss_size = kStack;
    context[thread].uc_link = nullptr;
    makecontext(&context[thread], enter, 0);
  }
  while (!std::all_of(done, done + threads, [](bool d) { return d; })) {
    for (int i = 0; i < threads; ++i) {
      current = i / kLanes * kLanes + (first + i) % kLanes;
      if (!done[current]) swapcontext(&scheduler, &context[current]);
    }
  }
}

// Where all threads of the block meet.
inline void barrier() {
  const int64_t which = barriers_of[current]++;
  int64_t& count = arrived[which % 2];
  ++count;  // goes on from barrier `which - 2`
  do meet();
  while (count < (which / 2 + 1) * threads);
}

inline uint64_t* give(uint64_t value) {
  uint64_t* set = slots[round_of[current]++ % 2];
  set[current] = value;
  meet();
  return set + current / kLanes * kLanes;  // of the warp
}

template <class T>
T exchange(T value, int source) {
  static_assert(sizeof(T) <= 8);
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  const uint64_t* warp = give(bits);
  T result;
  std::memcpy(&result, &warp[source % kLanes], sizeof(T));
  return result;
}

}  // namespace lanes

template <class T>
T __shfl_sync(unsigned, T value, int source) {
  return lanes::exchange(value, source);
}

template <class T>
T __shfl_xor_sync(unsigned, T value, int mask) {
  return lanes::exchange(value, lanes::current % lanes::kLanes ^ mask);
}

inline unsigned __ballot_sync(unsigned, bool vote) {
  unsigned result = 0;
  const uint64_t* warp = lanes::give(vote);
  for (int i = 0; i < lanes::kLanes; ++i) result |= static_cast<unsigned>(warp[i]) << i;
  return result;
}

template <class T>
T reduce_sync(T value, const T& (*better)(const T&, const T&)) {
  for (int offset = 16; offset > 0; offset >>= 1) value = better(value, __shfl_xor_sync(0u, value, offset));
  return value;
}
inline int32_t __reduce_max_sync(unsigned, int32_t v) { return reduce_sync<int32_t>(v, std::max<int32_t>); }
inline uint32_t __reduce_min_sync(unsigned, uint32_t v) { return reduce_sync<uint32_t>(v, std::min<uint32_t>); }

inline void __syncwarp() { lanes::meet(); }
inline void __syncthreads() { lanes::barrier(); }
inline int __ffs(unsigned bits) { return std::countr_zero(bits) + 1; }
inline int __popc(unsigned bits) { return std::popcount(bits); }
inline uint32_t __float_as_uint(float value) { return std::bit_cast<uint32_t>(value); }
inline int32_t __float_as_int(float value) { return std::bit_cast<int32_t>(value); }
inline float __uint_as_float(uint32_t bits) { return std::bit_cast<float>(bits); }
inline long long __double_as_longlong(double value) { return std::bit_cast<long long>(value); }
inline double __longlong_as_double(long long bits) { return std::bit_cast<double>(bits); }
