// Looks at every access of a kernel: g++ -fsanitize=thread puts a call of __tsan_readN or __tsan_writeN before each
// load and store, and these are ours. An access must lie in a tensor whose address the operation asked for, or in a
// shared array, be aligned, read only what was written in shared memory, and race with no other.
//
// Races: two threads touch a place, one of them writes, and no barrier came between in which both took part. The groups
// that meet (warp in block in cluster) are nested and meet as a whole, so that "between" is a comparison of how often
// the smallest group with both threads, or one around it, has met (Group::epoch). Shuffles, votes and reductions order
// no memory; blocks of one launch, beyond their cluster, are never ordered; launches are.
#include <algorithm>
#include <memory>

#include "state.h"

namespace emulation {
namespace {

enum Kind { kRead, kWrite, kAtomic };
constexpr const char* kKindNames[] = {"read", "write", "atomic"};
// The smallest group of the threads of an access.
enum Scope : uint8_t { nobody, one_thread, one_warp, one_block, one_cluster, whole_grid };
constexpr const char* kScopeNames[] = {"", "", "warp", "block", "cluster", "grid"};

// One access, or several of one kind of which none is before another: the latest, and the scope of all of them.
struct Access {
  Scope scope = nobody;
  uint32_t thread = 0, warp = 0, block = 0, cluster = 0;  // a thread's number; epochs
  const void* code = nullptr;
};

// The latest accesses of one place by launch `launch`.
struct Cell {
  uint32_t launch = 0;
  Access of[3];
};

// Memory cut into places of `unit` bytes: as small as what the kernels read and write there.
struct Shadow {
  uintptr_t begin = 0, end = 0;
  unsigned unit = 4;
  std::vector<Cell> cells;  // made at the first access
};

struct Tensor {
  Shadow shadow;
  bool is_writable = false;
};
std::vector<Tensor> tensors;

struct SharedArray {
  const void* tag = nullptr;
  int64_t begin = 0, bytes = 0;
};
alignas(16) char shared_bytes[16 * kSharedBytes];  // of the blocks of a cluster, one after another
std::vector<char> is_written;                      // of each byte
std::vector<SharedArray> shared_arrays;            // at the same place in each block
std::vector<Shadow> shared_shadows;                // of each array and block
int64_t shared_used = 0;

Scope scope_of(uint32_t a, uint32_t b) {
  const auto block = static_cast<uint32_t>(running.launch.block),
             cluster = static_cast<uint32_t>(running.launch.cluster);
  if (a == b) return one_thread;
  if (a / block != b / block) return a / block / cluster == b / block / cluster ? one_cluster : whole_grid;
  return a % block / 32 == b % block / 32 ? one_warp : one_block;
}

bool is_before(const Access& old, const Access& now) {
  const Scope scope = std::max(old.scope, scope_of(old.thread, now.thread));
  if (old.scope == nobody || scope == one_thread) return true;
  return (scope <= one_cluster && old.cluster < now.cluster) || (scope <= one_block && old.block < now.block) ||
         (scope <= one_warp && old.warp < now.warp);
}

void touch(Cell& cell, Kind kind, const Access& now, const char* memory) {
  if (cell.launch != running.number) {
    cell = Cell{};
    cell.launch = running.number;
  }
  for (const Kind other : {kRead, kWrite, kAtomic}) {
    if (kind == other && kind != kWrite) continue;  // two reads, two atomics
    const Access& old = cell.of[other];
    if (is_before(old, now)) continue;
    const Scope scope = scope_of(old.thread, now.thread);
    stop(std::string("race in ") + memory + " memory: " + kKindNames[kind] + at(now.code) + ", and " +
         kKindNames[other] + at(old.code) + " by another thread of the " + kScopeNames[scope] +
         ", with no barrier of both between");
  }
  Access& mine = cell.of[kind];
  const Scope scope = is_before(mine, now) ? one_thread : std::max(mine.scope, scope_of(mine.thread, now.thread));
  mine = now;
  mine.scope = scope;
}

void touch_all(Shadow& shadow, uintptr_t address, size_t bytes, Kind kind, const void* code, const char* memory) {
  if (shadow.cells.empty()) shadow.cells.resize((shadow.end - shadow.begin + shadow.unit - 1) / shadow.unit);
  const Fiber& self = *running.current;
  const Access now{one_thread, self.number, self.warp->epoch, self.block->epoch, running.cluster.epoch, code};
  const size_t first = (address - shadow.begin) / shadow.unit,
               last = (address + bytes - 1 - shadow.begin) / shadow.unit;
  for (size_t i = first; i <= last; ++i) touch(shadow.cells[i], kind, now, memory);
}

void access_shared(uintptr_t address, size_t bytes, Kind kind, const void* code) {
  const int64_t offset = static_cast<int64_t>(address - reinterpret_cast<uintptr_t>(shared_bytes));
  const int64_t rank = offset / kSharedBytes, begin = offset % kSharedBytes, size = static_cast<int64_t>(bytes);
  const auto array = std::find_if(shared_arrays.begin(), shared_arrays.end(), [&](const SharedArray& a) {
    return begin >= a.begin && begin + size <= a.begin + a.bytes;
  });
  if (array == shared_arrays.end()) stop(std::string(kKindNames[kind]) + " outside of all shared arrays" + at(code));
  Block& owner = running.blocks[rank];
  if (&owner != running.current->block) {
    if (running.cluster.epoch == 0)
      stop(
          "access to the shared memory of another block, which may not have begun: no barrier of the cluster came "
          "before" +
          at(code));
    owner.visit = {true, running.cluster.epoch, code};
  }
  char* written = is_written.data() + offset;
  if (kind == kWrite)
    std::fill(written, written + bytes, 1);
  else if (std::find(written, written + bytes, 0) != written + bytes)
    stop("shared memory is read before it is written" + at(code));
  const auto number = static_cast<size_t>(array - shared_arrays.begin());
  touch_all(shared_shadows[number * running.blocks.size() + rank], address, bytes, kind, code, "shared");
}

extern "C" const char __ehdr_start[] __attribute__((visibility("hidden")));
extern "C" const char _end[] __attribute__((visibility("hidden")));

// What the compiler put into this library, such as tables of constants.
bool is_constant(uintptr_t address) {
  return address >= reinterpret_cast<uintptr_t>(__ehdr_start) && address < reinterpret_cast<uintptr_t>(_end);
}

void access_tensor(uintptr_t address, size_t bytes, Kind kind, const void* code) {
  Tensor* found = nullptr;
  for (Tensor& tensor : tensors) {
    if (address < tensor.shadow.begin || address + bytes > tensor.shadow.end) continue;
    if (found == nullptr || tensor.is_writable) found = &tensor;
  }
  if (found == nullptr) {
    if (kind == kRead && is_constant(address)) return;
    stop(std::string(kKindNames[kind]) + " of " + std::to_string(bytes) + " bytes outside of all tensors" + at(code));
  }
  if (found->is_writable) return touch_all(found->shadow, address, bytes, kind, code, "global");
  if (kind != kRead) stop("write to a tensor whose address was asked for reading" + at(code));
}

void access(const void* pointer, size_t bytes, Kind kind, bool is_aligned, const void* code) {
  Fiber* self = running.current;
  if (self == nullptr || !self->checked) return;
  const auto address = reinterpret_cast<uintptr_t>(pointer);
  if (address - reinterpret_cast<uintptr_t>(self->stack) < kStackBytes) return;
  if (++running.steps > choices.max_steps) stop("a loop does not end" + at(code));
  if (is_aligned && address % bytes != 0) stop("misaligned " + std::string(kKindNames[kind]) + at(code));
  maybe_yield();
  is_shared(pointer) ? access_shared(address, bytes, kind, code) : access_tensor(address, bytes, kind, code);
}

}  // namespace

void forget_tensors() { tensors.clear(); }

// An address that the host code asked for: bytes from `pointer` on, of elements of `unit` bytes.
void know_tensor(const void* pointer, size_t bytes, unsigned unit, bool is_writable) {
  const auto begin = reinterpret_cast<uintptr_t>(pointer);
  if (bytes == 0) return;
  const auto is_replaced = [&](const Tensor& old) {  // the same one, or one whose memory was freed
    return begin < old.shadow.end && old.shadow.begin < begin + bytes && (is_writable || !old.is_writable);
  };
  tensors.erase(std::remove_if(tensors.begin(), tensors.end(), is_replaced), tensors.end());
  tensors.push_back({{begin, begin + bytes, std::min(unit, 4u), {}}, is_writable});
}

bool is_shared(const void* address) {
  return reinterpret_cast<uintptr_t>(address) - reinterpret_cast<uintptr_t>(shared_bytes) < sizeof(shared_bytes);
}

void reset_shared_memory(int64_t blocks) {
  shared_arrays.clear();
  shared_shadows.clear();
  shared_used = 0;
  is_written.assign(static_cast<size_t>(blocks * kSharedBytes), 0);
  std::fill_n(shared_bytes, blocks * kSharedBytes, static_cast<char>(0xff));  // NaN, and the largest integer
}

void* shared_array(const void* tag, size_t bytes, size_t alignment, Site site) {
  auto array = std::find_if(shared_arrays.begin(), shared_arrays.end(), [&](const auto& a) { return a.tag == tag; });
  if (array == shared_arrays.end()) {
    const auto align = static_cast<int64_t>(std::max<size_t>(alignment, 16));
    const int64_t begin = (shared_used + align - 1) / align * align, size = static_cast<int64_t>(bytes);
    if (begin + size > kSharedBytes) stop("the shared arrays of a block take more than 48 KiB with the one" + at(site));
    shared_used = begin + size + (begin + size < kSharedBytes ? 1 : 0);  // a gap, so that past one is not in another
    array = shared_arrays.insert(shared_arrays.end(), {tag, begin, size});
    for (size_t rank = 0; rank < running.blocks.size(); ++rank) {
      const auto at = reinterpret_cast<uintptr_t>(shared_bytes) + rank * kSharedBytes + static_cast<uintptr_t>(begin);
      shared_shadows.push_back({at, at + bytes, static_cast<unsigned>(std::min<size_t>(alignment, 4)), {}});
    }
  }
  return shared_bytes + running.current->block->rank * kSharedBytes + array->begin;
}

void* map_shared_rank(void* address, unsigned rank, Site site) {
  const Block& mine = *running.current->block;
  char* const own = shared_bytes + mine.rank * kSharedBytes;
  const auto offset = static_cast<char*>(address) - own;
  if (offset < 0 || offset >= kSharedBytes) stop("map_shared_rank of what is no shared memory of the block" + at(site));
  if (rank >= running.blocks.size())
    stop("map_shared_rank of block " + std::to_string(rank) + " of " + std::to_string(running.blocks.size()) +
         at(site));
  return shared_bytes + rank * kSharedBytes + offset;
}

void atomic_access(void* address, size_t bytes, const void* code) { access(address, bytes, kAtomic, true, code); }

}  // namespace emulation

// ---- the hooks that g++ calls ----

using emulation::access;
#define ACCESS(name, kind, bytes, aligned) \
  extern "C" void __tsan_##name(void* p) { access(p, bytes, emulation::kind, aligned, __builtin_return_address(0)); }
#define ACCESSES(bytes)                              \
  ACCESS(read##bytes, kRead, bytes, true)            \
  ACCESS(write##bytes, kWrite, bytes, true)          \
  ACCESS(volatile_read##bytes, kRead, bytes, true)   \
  ACCESS(volatile_write##bytes, kWrite, bytes, true) \
  ACCESS(unaligned_read##bytes, kRead, bytes, false) \
  ACCESS(unaligned_write##bytes, kWrite, bytes, false)
ACCESSES(1)
ACCESSES(2)
ACCESSES(4)
ACCESSES(8)
ACCESSES(16)
extern "C" void __tsan_read_range(void* p, size_t bytes) {
  access(p, bytes, emulation::kRead, false, __builtin_return_address(0));
}
extern "C" void __tsan_write_range(void* p, size_t bytes) {
  access(p, bytes, emulation::kWrite, false, __builtin_return_address(0));
}
extern "C" void __tsan_vptr_update(void**, void*) {}
extern "C" void __tsan_init() {}

// Atomics of the host code around the kernels: counts of owners, and the guards of static variables.
#define HOST_ATOMICS(bits)                                                                                       \
  extern "C" uint##bits##_t __tsan_atomic##bits##_load(volatile uint##bits##_t* p, int) {                        \
    return __atomic_load_n(p, __ATOMIC_SEQ_CST);                                                                 \
  }                                                                                                              \
  extern "C" uint##bits##_t __tsan_atomic##bits##_fetch_add(volatile uint##bits##_t* p, uint##bits##_t v, int) { \
    return __atomic_fetch_add(p, v, __ATOMIC_SEQ_CST);                                                           \
  }
HOST_ATOMICS(8)
HOST_ATOMICS(16)
HOST_ATOMICS(32)
HOST_ATOMICS(64)
