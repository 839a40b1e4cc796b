// Threads as fibers: one runs at a time, until it waits for its group or a switch is drawn. Which goes on next is
// decided by priorities drawn from the seed, in one of three ways a launch (see Policy).
#include <sys/mman.h>

#include <algorithm>

#include "state.h"

namespace emulation {

Running running;
std::mt19937_64 random_bits;

namespace {

// uniform: any ready thread. warps: one warp as far as it gets, rarely another. threads: one thread as far as it gets,
// which shows what needs the other lanes.
enum class Policy { uniform, warps, threads } policy;
uint64_t accesses_to_switch = 0, switch_every = 0;  // 0: only where threads wait

jmp_buf scheduler;
std::vector<Fiber> fibers;
std::vector<Fiber*> ready;  // a heap by priority

bool is_below(const Fiber* a, const Fiber* b) { return a->priority < b->priority; }

void make_ready(Fiber* fiber) {
  const uint64_t drawn = random_bits();
  if (policy == Policy::uniform) {
    fiber->priority = drawn;
  } else if (policy == Policy::warps) {
    if (drawn % 256 == 0) fiber->warp->priority = static_cast<uint32_t>(drawn >> 8);
    fiber->priority = (uint64_t{fiber->warp->priority} << 32) | (drawn >> 32);
  } else if (drawn % 256 == 0) {
    fiber->priority = drawn;
  }
  ready.push_back(fiber);
  std::push_heap(ready.begin(), ready.end(), is_below);
}

void leave() {
  if (_setjmp(running.current->context) == 0) _longjmp(scheduler, 1);
}

void finish(Group& group) {
  ++group.finished;
  if (!group.waiting.empty())
    stop("a thread ends, while others of its " + std::string(group.name) + " wait" + at(group.site));
}

// What every fiber does, for one launch after another.
void fiber_loop() {
  for (;;) {
    Fiber& self = *running.current;
    running.thread(running.call);
    self.checked = false;
    finish(*self.warp);
    finish(*self.block);
    finish(running.cluster);
    leave();
  }
}

void make_fibers() {
  void* stacks = mmap(nullptr, kStackBytes * kMaxFibers, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (stacks == MAP_FAILED) throw std::bad_alloc();
  fibers.resize(kMaxFibers);
  for (int64_t i = 0; i < kMaxFibers; ++i) fibers[i].stack = static_cast<char*>(stacks) + i * kStackBytes;
}

void resume(Fiber& fiber) {
  running.current = &fiber;
  if (_setjmp(scheduler) == 0) {
    if (fiber.begun) _longjmp(fiber.context, 1);
    fiber.begun = true;
    getcontext(&fiber.start);
    fiber.start.uc_stack.ss_sp = fiber.stack;
    fiber.start.uc_stack.ss_size = kStackBytes;
    fiber.start.uc_link = nullptr;
    makecontext(&fiber.start, fiber_loop, 0);
    setcontext(&fiber.start);
  }
  running.current = nullptr;
}

// Waits until all of the group are here. The last one makes the values of a collective.
void meet(Group& group, const char* operation_name, Collective operation, Site site) {
  const std::string name(group.name);
  if (++running.steps > choices.max_steps) stop("a loop does not end" + at(site));
  if (group.finished > 0)
    stop(std::string(operation_name) + at(site) + ", which " + std::to_string(group.finished) + " of the " +
         std::to_string(group.size) + " threads of the " + name + " never reach: they have ended");
  if (group.waiting.empty()) {
    group.operation = operation;
    group.site = site;
  } else if (group.operation != operation || group.site.line != site.line ||
             std::strcmp(group.site.file, site.file) != 0) {
    stop("the threads of a " + name + " diverge: " + operation_name + at(site) + ", while others wait" +
         at(group.site));
  }
  group.waiting.push_back(running.current);
  if (group.waiting.size() < group.size) return leave();
}

void release(Group& group) {
  for (Fiber* fiber : group.waiting) make_ready(fiber);
  group.waiting.clear();
  leave();
}

void barrier(Group& group, const char* operation_name, Site site) {
  meet(group, operation_name, Collective::sync, site);
  if (group.waiting.size() < group.size) return;
  ++group.epoch;
  release(group);
}

uint64_t reduce(Collective operation, uint64_t a, uint64_t b) {
  switch (operation) {
    case Collective::add:
      return a + b;
    case Collective::min:
      return static_cast<uint64_t>(std::min(static_cast<int64_t>(a), static_cast<int64_t>(b)));
    case Collective::max:
      return static_cast<uint64_t>(std::max(static_cast<int64_t>(a), static_cast<int64_t>(b)));
    case Collective::all:
    case Collective::bit_and:
      return a & b;
    case Collective::bit_xor:
      return a ^ b;
    default:  // any, ballot, or
      return a | b;
  }
}

void exchange(const std::vector<Fiber*>& lanes, Collective operation) {
  uint64_t given[32] = {};
  for (const Fiber* fiber : lanes) given[fiber->thread.x % 32] = fiber->value;
  if (operation == Collective::ballot)
    for (int lane = 0; lane < 32; ++lane) given[lane] <<= lane;
  uint64_t all = given[0];
  for (int lane = 1; lane < 32; ++lane) all = reduce(operation, all, given[lane]);
  for (Fiber* fiber : lanes) fiber->value = operation == Collective::shuffle ? given[fiber->source] : all;
}

// Why no thread can go on: where the threads wait.
std::string deadlock() {
  std::map<std::string, int64_t> places;
  const auto count = [&](const Group& group) {
    if (!group.waiting.empty())
      places[at(group.site) + " for their " + group.name] += static_cast<int64_t>(group.waiting.size());
  };
  for (const Warp& warp : running.warps) count(warp);
  for (const Block& block : running.blocks) count(block);
  count(running.cluster);
  std::string text = "deadlock:";
  for (const auto& [place, threads] : places) text += " " + std::to_string(threads) + " threads wait" + place + ";";
  return text;
}

}  // namespace

Index thread_index() { return running.current->thread; }
Index block_index() { return running.current->block->index; }
unsigned cluster_rank() { return running.current->block->rank; }
unsigned cluster_blocks() { return static_cast<unsigned>(running.launch.cluster); }

void trap(Site site) { stop("__trap" + at(site)); }

void block_barrier(Site site) { barrier(*running.current->block, "__syncthreads", site); }

void cluster_barrier(Site site) { barrier(running.cluster, "a barrier of the cluster", site); }

uint64_t warp_collective(Collective operation, unsigned mask, uint64_t value, int source, Site site) {
  if (mask != 0xffffffffu) stop("only full masks of a warp are emulated, got another one" + at(site));
  if (operation == Collective::sync) {
    barrier(*running.current->warp, "__syncwarp", site);
    return 0;
  }
  Fiber& self = *running.current;
  self.value = value;
  self.source = source & 31;
  Group& warp = *self.warp;
  meet(warp, "an operation of a warp", operation, site);
  if (warp.waiting.size() == warp.size) {
    exchange(warp.waiting, operation);  // shuffles, votes and reductions order no memory
    release(warp);
  }
  return self.value;
}

void yield() {
  make_ready(running.current);
  leave();
}

void maybe_yield() {
  if (switch_every == 0 || --accesses_to_switch > 0) return;
  accesses_to_switch = 1 + random_bits() % (2 * switch_every);
  yield();
}

void leave_launch() {
  running.current->begun = false;  // its stack is in the middle of a kernel
  _longjmp(scheduler, 1);
}

void draw_schedule() {
  constexpr uint64_t kEvery[] = {0, 0, 1000, 30};
  policy = static_cast<Policy>(random_bits() % 3);
  switch_every = kEvery[random_bits() % 4];
  accesses_to_switch = 1 + switch_every;
}

void run_cluster(int64_t first_block) {
  if (fibers.empty()) make_fibers();
  const auto cluster = static_cast<uint32_t>(running.launch.cluster),
             block = static_cast<uint32_t>(running.launch.block);
  const uint32_t warps = (block + 31) / 32;
  running.cluster.reset("cluster", cluster * block);
  running.blocks.resize(cluster);
  running.warps.resize(cluster * warps);
  reset_shared_memory(cluster);
  ready.clear();
  for (uint32_t b = 0; b < cluster; ++b) {
    running.blocks[b].reset("block", block);
    running.blocks[b].index = {static_cast<unsigned>(first_block + b), 0, 0};
    running.blocks[b].rank = b;
    running.blocks[b].visit = {};
    for (uint32_t w = 0; w < warps; ++w) {
      running.warps[b * warps + w].reset("warp", 32);
      running.warps[b * warps + w].priority = static_cast<uint32_t>(random_bits());
    }
    for (uint32_t t = 0; t < block; ++t) {
      Fiber& fiber = fibers[b * block + t];
      fiber.checked = false;
      fiber.thread = {t, 0, 0};
      fiber.number = static_cast<uint32_t>(first_block + b) * block + t;
      fiber.warp = &running.warps[b * warps + t / 32];
      fiber.block = &running.blocks[b];
      fiber.priority = random_bits();
      make_ready(&fiber);
    }
  }
  while (!ready.empty() && !running.failed) {
    std::pop_heap(ready.begin(), ready.end(), is_below);
    Fiber* next = ready.back();
    ready.pop_back();
    resume(*next);
  }
  if (!running.failed && running.cluster.finished < running.cluster.size) {
    report(deadlock());
    running.failed = true;
  }
  if (running.failed)  // their stacks are in the middle of a kernel
    for (uint32_t i = 0; i < cluster * block; ++i) fibers[i].begun = false;
}

}  // namespace emulation
