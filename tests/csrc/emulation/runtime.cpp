// The host's side: launches and what a device would refuse of them, the runtime's functions, PyTorch's functions that
// the host code calls with a device in mind, and what the tests control.
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/c/shim.h>

#include <algorithm>
#include <set>
#include <utility>

#include "state.h"

dim3 blockDim, gridDim;

namespace emulation {

Device device{0, 90, 132, 16};
Choices choices;
std::map<std::string, int64_t> launches_of;
void know_tensor(const void* pointer, size_t bytes, unsigned unit, bool is_writable);
extern std::string pending_error;

namespace {

EmulatedStream* const kStream = reinterpret_cast<EmulatedStream*>(0x5eed);
int64_t guards = 0, unchecked_launches = 0;
cudaError_t last_error = cudaSuccess;
std::set<const void*> large_clusters;  // kernels that may run in clusters of more than 8
const char* kernel_name = "";

std::string refusal(const Launch& l) {
  const auto text = [](auto... words) { return (std::string() + ... + words); };
  const auto number = [](int64_t value) { return std::to_string(value); };
  if (guards == 0) return "no DeviceGuard is alive: the launch would go to whatever device is current";
  if (l.stream != kStream) return "the stream is not the one that torch has current";
  if (l.grid < 1 || l.grid > INT32_MAX) return text("the grid must have 1 to 2^31 - 1 blocks, got ", number(l.grid));
  if (l.block < 1 || l.block > 1024) return text("a block must have 1 to 1024 threads, got ", number(l.block));
  if (l.dynamic_shared != 0) return "dynamic shared memory is not emulated";
  if (l.cluster == 1) return "";
  if (device.architecture < 90) return "the device has no clusters";
  if (l.cluster < 1 || l.grid % l.cluster != 0)
    return text("the grid of ", number(l.grid), " blocks is no multiple of clusters of ", number(l.cluster));
  if (l.cluster > device.max_cluster) return text("the device has no clusters of ", number(l.cluster), " blocks");
  if (l.cluster > 8 && large_clusters.count(l.function) == 0)
    return "clusters of more than 8 blocks need cudaFuncAttributeNonPortableClusterSizeAllowed";
  return "";
}

// After the last thread of a cluster: nobody may have looked into a block that could have ended.
void check_visits() {
  for (const Block& block : running.blocks)
    if (block.visit.made && block.visit.epoch == running.cluster.epoch)
      report(
          "access to the shared memory of another block, which may have ended: no barrier of the cluster comes after" +
          at(block.visit.code));
}

}  // namespace

void run(const Launch& launch, void (*thread)(void*), void* call) {
  ++unchecked_launches;
  const std::string refused = refusal(launch);
  if (!refused.empty()) {
    report("a device would refuse the launch: " + refused);
    last_error = cudaErrorInvalidConfiguration;
    return;
  }
  running.launch = launch;
  running.thread = thread;
  running.call = call;
  running.number += 1;
  running.steps = 0;
  running.failed = false;
  kernel_name = "";
  gridDim = dim3(static_cast<unsigned>(launch.grid));
  blockDim = dim3(static_cast<unsigned>(launch.block));
  draw_schedule();
  std::vector<int64_t> order(static_cast<size_t>(launch.grid / launch.cluster));
  for (size_t i = 0; i < order.size(); ++i) order[i] = static_cast<int64_t>(i);
  std::shuffle(order.begin(), order.end(), random_bits);
  for (const int64_t cluster : order) {
    run_cluster(cluster * launch.cluster);
    if (!running.failed) check_visits();
    if (running.failed || !pending_error.empty()) break;
  }
  launches_of[kernel_name] += 1;
  if (!pending_error.empty()) last_error = cudaErrorLaunchFailure;
}

void enter_kernel(const char* name, int64_t max_threads, int64_t) {
  kernel_name = name;
  if (running.launch.block > max_threads)
    stop("a device would refuse the launch: __launch_bounds__ of the kernel allows " + std::to_string(max_threads) +
         " threads a block, got " + std::to_string(running.launch.block));
  running.current->checked = true;
}

cudaError_t allow_large_clusters(const void* function, int value) {
  if (device.architecture < 90) return last_error = cudaErrorInvalidValue;
  value ? void(large_clusters.insert(function)) : void(large_clusters.erase(function));
  return cudaSuccess;
}

Launch configuration_of(const cudaLaunchConfig_t& config, const void* function) {
  Launch launch = configuration(config.gridDim.x, config.blockDim.x, config.dynamicSmemBytes, config.stream);
  launch.function = function;
  for (unsigned i = 0; i < config.numAttrs; ++i) launch.cluster = config.attrs[i].val.clusterDim.x;
  if (config.gridDim.y != 1 || config.gridDim.z != 1 || config.blockDim.y != 1 || config.blockDim.z != 1)
    report("grids and blocks of more than one dimension are not emulated");
  return launch;
}

cudaError_t count_clusters(int* clusters, const void* function, const cudaLaunchConfig_t& config) {
  const int64_t blocks = configuration_of(config, function).cluster;
  const bool is_allowed = blocks <= 8 || large_clusters.count(function) > 0;
  *clusters = blocks <= device.max_cluster && is_allowed ? static_cast<int>(device.processors / blocks) : 0;
  return *clusters > 0 ? cudaSuccess : last_error = cudaErrorInvalidConfiguration;
}

}  // namespace emulation

using namespace emulation;

cudaError_t cudaGetLastError() {
  unchecked_launches = 0;
  return std::exchange(last_error, cudaSuccess);
}

const char* cudaGetErrorString(cudaError_t) { return pending_error.c_str(); }

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int index) {
  if (index != device.index) return last_error = cudaErrorInvalidValue;
  *value = attribute == cudaDevAttrMultiProcessorCount ? device.processors : device.architecture / 10;
  return cudaSuccess;
}

// ---- what the preprocessor puts in the place of PyTorch's functions ----

namespace {

AOTITorchError know(AtenTensorHandle tensor, const void* pointer, bool is_writable) {
  int64_t dim = 0, *sizes = nullptr, *strides = nullptr;
  int32_t dtype = 0;
  aoti_torch_get_dim(tensor, &dim);
  aoti_torch_get_sizes(tensor, &sizes);
  aoti_torch_get_strides(tensor, &strides);
  aoti_torch_get_dtype(tensor, &dtype);
  const size_t element = aoti_torch_dtype_element_size(dtype);
  int64_t last = 0;
  for (int64_t d = 0; d < dim; ++d) {
    if (sizes[d] == 0) return AOTI_TORCH_SUCCESS;
    last += (sizes[d] - 1) * strides[d];
  }
  know_tensor(pointer, (static_cast<size_t>(last) + 1) * element, static_cast<unsigned>(element), is_writable);
  return AOTI_TORCH_SUCCESS;
}

}  // namespace

extern "C" {

AOTITorchError emulated_const_data_ptr(AtenTensorHandle tensor, const void** pointer) {
  const AOTITorchError error = torch_get_const_data_ptr(tensor, pointer);
  return error == AOTI_TORCH_SUCCESS ? know(tensor, *pointer, false) : error;
}

AOTITorchError emulated_mutable_data_ptr(AtenTensorHandle tensor, void** pointer) {
  const AOTITorchError error = torch_get_mutable_data_ptr(tensor, pointer);
  return error == AOTI_TORCH_SUCCESS ? know(tensor, *pointer, true) : error;
}

AOTITorchError emulated_data_ptr(AtenTensorHandle tensor, void** pointer) {
  const AOTITorchError error = aoti_torch_get_data_ptr(tensor, pointer);
  return error == AOTI_TORCH_SUCCESS ? know(tensor, *pointer, true) : error;
}

AOTITorchError emulated_device_index(AtenTensorHandle, int32_t* index) {
  *index = device.index;
  return AOTI_TORCH_SUCCESS;
}

AOTITorchError emulated_create_guard(int32_t index, DeviceGuardHandle* guard) {
  if (index != device.index)
    report("a DeviceGuard of device " + std::to_string(index) + ", which the tensors are not on");
  ++guards;
  *guard = reinterpret_cast<DeviceGuardHandle>(&guards);
  return AOTI_TORCH_SUCCESS;
}

AOTITorchError emulated_delete_guard(DeviceGuardHandle) {
  --guards;
  return AOTI_TORCH_SUCCESS;
}

AOTITorchError emulated_current_stream(int32_t, void** stream) {
  *stream = kStream;
  return AOTI_TORCH_SUCCESS;
}

// ---- what Python calls ----

__attribute__((visibility("default"))) void emulation_begin(uint64_t seed, int index, int architecture, int processors,
                                                            int max_cluster) {
  random_bits.seed(seed);
  device = {index, architecture, processors, max_cluster};
  forget_tensors();
  pending_error.clear();
  last_error = cudaSuccess;
  unchecked_launches = 0;
  guards = 0;
}

__attribute__((visibility("default"))) void emulation_choose(const Choices* wish) { choices = *wish; }

// The error of the operation that began last, or an empty text.
__attribute__((visibility("default"))) const char* emulation_end() {
  if (unchecked_launches > 0) report("cudaGetLastError is not asked after a launch");
  if (guards != 0) report("a DeviceGuard outlives its operation");
  return pending_error.c_str();
}

// "NAME\tLAUNCHES\n" of each kernel.
__attribute__((visibility("default"))) const char* emulation_launches() {
  static std::string text;
  text.clear();
  for (const auto& [name, count] : launches_of) text += name + "\t" + std::to_string(count) + "\n";
  return text.c_str();
}
}
