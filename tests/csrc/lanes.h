// A warp on the host: 32 coroutines that meet at every shuffle, and CUDA's words for what they do there.
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

using std::fmin;
using std::isfinite;
using std::max;
using std::min;

namespace lanes {

constexpr int kLanes = 32;
inline ucontext_t scheduler, lane_context[kLanes];
inline int current;
inline bool done[kLanes];
inline std::function<void(int)> body;
inline uint64_t slots[2][kLanes];  // two sets, as a lane may write the next round before another has read this one
inline int round_of[kLanes];

inline void meet() { swapcontext(&lane_context[current], &scheduler); }

inline void enter() {
  body(current);
  done[current] = true;
  swapcontext(&lane_context[current], &scheduler);
}

// Runs `work(lane)` on 32 lanes, each up to its next meeting point, in the order of `first`, first + 1, ... (mod 32).
inline void run(std::function<void(int)> work, int first = 0) {
  body = std::move(work);
  std::vector<char> stacks(kLanes * (64 << 10));
  for (int lane = 0; lane < kLanes; ++lane) {
    done[lane] = false;
    round_of[lane] = 0;
    getcontext(&lane_context[lane]);
    lane_context[lane].uc_stack.ss_sp = stacks.data() + lane * (64 << 10);
    lane_context[lane].uc_stack.ss_size = 64 << 10;
    lane_context[lane].uc_link = nullptr;
    makecontext(&lane_context[lane], enter, 0);
  }
  while (!std::all_of(done, done + kLanes, [](bool d) { return d; })) {
    for (int i = 0; i < kLanes; ++i) {
      current = (first + i) % kLanes;
      if (!done[current]) swapcontext(&scheduler, &lane_context[current]);
    }
  }
}

template <class T>
T exchange(T value, int source) {
  static_assert(sizeof(T) <= 8);
  const int lane = current;
  uint64_t* set = slots[round_of[lane]++ % 2];
  set[lane] = 0;
  std::memcpy(&set[lane], &value, sizeof(T));
  meet();
  T result;
  std::memcpy(&result, &set[source % kLanes], sizeof(T));
  return result;
}

}  // namespace lanes

template <class T>
T __shfl_sync(unsigned, T value, int source) {
  return lanes::exchange(value, source);
}

template <class T>
T __shfl_xor_sync(unsigned, T value, int mask) {
  return lanes::exchange(value, lanes::current ^ mask);
}

inline unsigned __ballot_sync(unsigned, bool vote) {
  unsigned result = 0;
  const int lane = lanes::current;
  uint64_t* set = lanes::slots[lanes::round_of[lane]++ % 2];
  set[lane] = vote;
  lanes::meet();
  for (int i = 0; i < lanes::kLanes; ++i) result |= static_cast<unsigned>(set[i]) << i;
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
inline int __popc(unsigned bits) { return std::popcount(bits); }
inline uint32_t __float_as_uint(float value) { return std::bit_cast<uint32_t>(value); }
inline int32_t __float_as_int(float value) { return std::bit_cast<int32_t>(value); }
inline float __uint_as_float(uint32_t bits) { return std::bit_cast<float>(bits); }
inline long long __double_as_longlong(double value) { return std::bit_cast<long long>(value); }
inline double __longlong_as_double(long long bits) { return std::bit_cast<double>(bits); }
