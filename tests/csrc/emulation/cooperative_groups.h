// Stands in for CUDA's header of this name: the cluster of a block, with the shared memory of its other blocks.
#pragma once

#include "cuda_runtime.h"

namespace cooperative_groups {

struct cluster_group {
  void sync(EMULATION_SITE) const { emulation::cluster_barrier(site); }
  unsigned block_rank() const { return emulation::cluster_rank(); }
  unsigned num_blocks() const { return emulation::cluster_blocks(); }
  template <class T>
  T* map_shared_rank(T* address, unsigned rank, EMULATION_SITE) const {
    return static_cast<T*>(emulation::map_shared_rank(address, rank, site));
  }
};
inline cluster_group this_cluster() { return {}; }

}  // namespace cooperative_groups
