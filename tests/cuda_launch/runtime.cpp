// The CUDA runtime as far as launches need it, by the rules that threads, captures, drivers and devices bring: nothing is
// computed. A call that is missing here shows when linking. Two devices: an H200 (0) and an L4 (1).
#include "runtime.h"

#include <cuda_runtime_api.h>

#include <cstdio>
#include <map>
#include <mutex>
#include <string>
#include <thread>
#include <utility>
#include <vector>

Machine machine;

namespace {

struct Device {
  int major, minor, sms, shared_per_block, shared_per_sm;
};
constexpr Device kDevices[] = {{9, 0, 132, 227 << 10, 228 << 10}, {8, 9, 58, 99 << 10, 100 << 10}};

using Function = std::pair<const void*, int>;  // and its device: attributes are those of a context
struct State {
  int shared_limit = 48 << 10;  // until cudaFuncSetAttribute sets it
  bool loaded = false;
};

// In a function, as kernels are registered before this file's own variables are made.
std::map<const void*, std::string>& names() {
  static std::map<const void*, std::string> all;
  return all;
}
std::mutex mutex;
std::map<Function, State> states;
struct Node {
  Function function;
  size_t shared;
};
std::vector<Node> captured;
bool capturing = false;

thread_local int current = 0;
thread_local cudaError_t last = cudaSuccess;

cudaError_t result(cudaError_t e) { return e == cudaSuccess ? e : last = e; }

// What every call that needs the driver begins with.
cudaError_t driver() { return machine.old_driver ? cudaErrorInsufficientDriver : cudaSuccess; }

// The function on the current device, loaded if it was not.
cudaError_t load(const void* kernel, State** state) {
  if (const cudaError_t e = driver()) return e;
  if (names().count(kernel) == 0) return cudaErrorInvalidDeviceFunction;
  if (machine.without_code.count(current)) return cudaErrorNoKernelImageForDevice;
  *state = &states[{kernel, current}];
  if (!(*state)->loaded && capturing && !machine.loads_in_captures) return cudaErrorStreamCaptureUnsupported;
  (*state)->loaded = true;
  return cudaSuccess;
}

cudaError_t allowed(const Function& function, size_t shared) {
  return shared > static_cast<size_t>(states[function].shared_limit) ? cudaErrorInvalidValue : cudaSuccess;
}

void note(const char* what, const void* kernel, size_t bytes, cudaError_t e) {
  std::printf("%s %s %d %zu %d\n", what, names()[kernel].c_str(), current, bytes, static_cast<int>(e));
}

}  // namespace

extern "C" {

void** __cudaRegisterFatBinary(void*) { return nullptr; }
void __cudaRegisterFatBinaryEnd(void**) {}
void __cudaUnregisterFatBinary(void**) {}
void __cudaRegisterFunction(void**, const char* host, char*, const char* name, int, uint3*, uint3*, dim3*, dim3*, int*) {
  names()[host] = name;
}
// These are of <<<>>>, which nothing here uses.
unsigned __cudaPushCallConfiguration(dim3, dim3, size_t, void*) { return cudaErrorNotSupported; }
cudaError_t __cudaPopCallConfiguration(dim3*, dim3*, size_t*, void*) { return cudaErrorNotSupported; }
cudaError_t __cudaGetKernel(cudaKernel_t*, const void*) { return cudaErrorNotSupported; }
cudaError_t __cudaLaunchKernel(cudaKernel_t, dim3, dim3, void**, size_t, cudaStream_t) { return cudaErrorNotSupported; }

cudaError_t cudaGetDevice(int* device) {
  *device = current;
  return result(driver());
}
cudaError_t cudaSetDevice(int device) {
  current = device;
  return result(driver());
}
cudaError_t cudaGetLastError() { return std::exchange(last, cudaSuccess); }
cudaError_t cudaPeekAtLastError() { return last; }
const char* cudaGetErrorString(cudaError_t) { return "an error"; }

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr what, int device) {
  if (const cudaError_t e = driver()) return result(e);
  if (device < 0 || device >= static_cast<int>(std::size(kDevices))) return result(cudaErrorInvalidDevice);
  const Device& d = kDevices[device];
  switch (what) {
    case cudaDevAttrComputeCapabilityMajor: *value = d.major; break;
    case cudaDevAttrComputeCapabilityMinor: *value = d.minor; break;
    case cudaDevAttrMultiProcessorCount: *value = d.sms; break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin: *value = d.shared_per_block; break;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor: *value = d.shared_per_sm; break;
    default: return result(cudaErrorInvalidValue);
  }
  return cudaSuccess;
}

cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, const void* kernel) {
  const std::lock_guard<std::mutex> lock(mutex);
  State* state = nullptr;
  const cudaError_t e = load(kernel, &state);
  *attributes = {};
  note("ask", kernel, 0, e);
  return result(e);
}

cudaError_t cudaFuncSetAttribute(const void* kernel, cudaFuncAttribute what, int value) {
  std::unique_lock<std::mutex> lock(mutex);
  State* state = nullptr;
  cudaError_t e = load(kernel, &state);
  if (!e && what != cudaFuncAttributeMaxDynamicSharedMemorySize) e = cudaErrorInvalidValue;
  if (!e && (value < 0 || value > kDevices[current].shared_per_block)) e = cudaErrorInvalidValue;
  if (!e) state->shared_limit = value;
  note("set", kernel, value, e);
  lock.unlock();
  std::this_thread::yield();  // to another one that is about to set or launch
  return result(e);
}

cudaError_t cudaLaunchKernel(const void* kernel, dim3, dim3, void**, size_t shared, cudaStream_t) {
  const std::lock_guard<std::mutex> lock(mutex);
  State* state = nullptr;
  cudaError_t e = load(kernel, &state);
  if (!e) e = allowed({kernel, current}, shared);
  if (!e && capturing) captured.push_back({{kernel, current}, shared});
  note("launch", kernel, shared, e);
  return result(e);
}

cudaError_t cudaStreamBeginCapture(cudaStream_t, cudaStreamCaptureMode) {
  capturing = true;
  return cudaSuccess;
}
cudaError_t cudaStreamEndCapture(cudaStream_t, cudaGraph_t*) {
  capturing = false;
  return cudaSuccess;
}
// Every node is checked against its function as it is now, not as it was when the node was captured.
cudaError_t cudaGraphInstantiate(cudaGraphExec_t*, cudaGraph_t, unsigned long long) {
  for (const Node& node : captured)
    if (const cudaError_t e = allowed(node.function, node.shared)) return result(e);
  return cudaSuccess;
}

}  // extern "C"
