// What translated kernels and the stand-ins for CUDA's headers ask of the emulator. All state is behind these
// functions, in files compiled without access hooks.
#pragma once

#include <cstddef>
#include <cstdint>
#include <type_traits>

using cudaStream_t = struct EmulatedStream*;

namespace emulation {

struct Index {
  unsigned x, y, z;
};

// A line of the source, by default the caller's.
struct Site {
  const char* file = "";
  int line = 0;
  static constexpr Site here(const char* file = __builtin_FILE(), int line = __builtin_LINE()) { return {file, line}; }
};

// Of the thread that runs.
__attribute__((const)) Index thread_index();
__attribute__((const)) Index block_index();

struct Launch {
  int64_t grid, block, cluster;
  size_t dynamic_shared;
  cudaStream_t stream;
  const void* function;  // of a launch by pointer, whose attributes may matter
};

inline Launch configuration(int64_t grid, int64_t block, size_t dynamic_shared = 0, cudaStream_t stream = nullptr) {
  return {grid, block, 1, dynamic_shared, stream, nullptr};
}

void run(const Launch& launch, void (*thread)(void*), void* call);

// Runs `kernel(arguments...)` in every thread; each gets copies of the arguments.
template <class Kernel, class... Arguments>
void launch(const Launch& launch, Kernel kernel, Arguments... arguments) {
  auto call = [&] { kernel(arguments...); };
  run(launch, [](void* given) { (*static_cast<decltype(call)*>(given))(); }, &call);
}

// The first statement of every translated kernel. Accesses are checked from here on.
void enter_kernel(const char* name, int64_t max_threads = 1024, int64_t min_blocks = 1);

// The block's array of one `__shared__` declaration, which `tag` stands for.
void* shared_array(const void* tag, size_t bytes, size_t alignment, Site site);

enum class Collective { sync, shuffle, ballot, all, any, add, min, max, bit_and, bit_or, bit_xor };

void block_barrier(Site site);
void cluster_barrier(Site site);
unsigned cluster_rank();
unsigned cluster_blocks();
void* map_shared_rank(void* address, unsigned rank, Site site);
uint64_t warp_collective(Collective operation, unsigned mask, uint64_t value, int source, Site site);
[[noreturn]] void trap(Site site);

// Checks an atomic access and says where it stands in the order of things; the caller then changes the value.
void atomic_access(void* address, size_t bytes, const void* code);

// What the tests may put in the place of the host code's own choices.
struct Choices {
  int way = -1, threads = 0, points = 0, blocks = 1;  // of a sampling plan; a negative way leaves the plan as it is
  int64_t max_blocks = int64_t{1} << 20;              // of one launch of ball_query
  int64_t product_entries = int64_t{1} << 24;         // of one product of knn
  int64_t max_steps = 300000000;                      // accesses and switches of a launch: beyond, its loops do not end
};
extern Choices choices;

template <class Plan>
Plan choose(Plan plan) {
  if (choices.way < 0) return plan;
  plan.way = static_cast<decltype(plan.way)>(choices.way);
  plan.threads = choices.threads;
  plan.points = choices.points;
  plan.blocks = choices.blocks;
  return plan;
}

const char* library_name();  // the operations are registered under it

}  // namespace emulation

// In the place of STABLE_TORCH_LIBRARY_IMPL(pointpeft, CUDA, m).
#define EMULATED_LIBRARY_IMPL(m)                                                                                  \
  static void emulated_registration(torch::stable::detail::StableLibrary&);                                       \
  static const torch::stable::detail::StableTorchLibraryInit emulated_library(                                    \
      torch::stable::detail::StableLibrary::Kind::IMPL, &emulated_registration, emulation::library_name(), "CPU", \
      __FILE__, __LINE__);                                                                                        \
  void emulated_registration(torch::stable::detail::StableLibrary& m)
