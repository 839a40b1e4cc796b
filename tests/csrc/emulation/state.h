// What the emulator's files share: the launch that runs, its threads, and how errors end it.
#pragma once

#include <setjmp.h>
#include <ucontext.h>

#include <cstdint>
#include <map>
#include <random>
#include <string>
#include <vector>

#include "cuda_runtime.h"

namespace emulation {

constexpr int64_t kStackBytes = 64 << 10;      // of a fiber
constexpr int64_t kMaxFibers = 16 * 1024;      // a cluster of 16 blocks
constexpr int64_t kSharedBytes = 48 << 10;     // static shared memory of a block

struct Fiber;

// Threads that meet: a warp, a block, a cluster. `epoch` counts the meetings that order memory.
struct Group {
  const char* name = "";
  uint32_t size = 0, finished = 0, epoch = 0;
  Collective operation = Collective::sync;
  Site site;
  std::vector<Fiber*> waiting;

  void reset(const char* group_name, uint32_t group_size) {
    name = group_name;
    size = group_size;
    finished = epoch = 0;
    waiting.clear();
  }
};

struct Warp : Group {
  uint32_t priority = 0;
};

// The last access of another block to this one's shared memory.
struct Visit {
  bool made = false;
  uint32_t epoch = 0;  // of the cluster
  const void* code = nullptr;
};

struct Block : Group {
  Index index{};
  unsigned rank = 0;
  Visit visit;
};

struct Fiber {
  jmp_buf context;
  ucontext_t start;
  char* stack = nullptr;
  bool begun = false;    // its loop runs, and waits at `context`
  bool checked = false;  // in a kernel, past its first statement
  Index thread{};
  uint32_t number = 0;  // in the grid
  uint64_t priority = 0;
  Warp* warp = nullptr;
  Block* block = nullptr;
  uint64_t value = 0;  // given to a collective, and what comes of it
  int source = 0;
};

struct Device {
  int index, architecture, processors, max_cluster;
};

struct Running {
  Launch launch{};
  void (*thread)(void*) = nullptr;
  void* call = nullptr;
  uint32_t number = 0;  // counts launches
  int64_t steps = 0;    // accesses and switches
  bool failed = false;
  Fiber* current = nullptr;
  Group cluster;
  std::vector<Warp> warps;
  std::vector<Block> blocks;
};

extern Running running;
extern Device device;
extern std::mt19937_64 random_bits;
extern std::map<std::string, int64_t> launches_of;  // kernels by name

// scheduler.cpp
void run_cluster(int64_t first_block);
void yield();  // lets another fiber go on
void maybe_yield();
void draw_schedule();  // of a launch

// memory.cpp
void forget_tensors();
void reset_shared_memory(int64_t blocks);
bool is_shared(const void* address);
void visit_shared(void* address);

// errors.cpp
std::string at(const Site& site);
std::string at(const void* code);
void report(const std::string& text);             // keeps the first error of an operation
[[noreturn]] void stop(const std::string& text);  // reports, and ends the launch, from inside of a fiber
[[noreturn]] void leave_launch();                 // of scheduler.cpp: what `stop` ends with

}  // namespace emulation
