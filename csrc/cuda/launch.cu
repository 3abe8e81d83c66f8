// What every launch has in common: the device's limits, and the table of the families' launchers.
#include "family.h"
#include "ptx.cuh"
#include "weight_sum.cuh"

#ifdef __CUDACC__
#include <mutex>
#include <set>
#include <utility>
#endif

namespace replknet_ext::cuda {

#ifdef __CUDACC__
namespace {

// Whether an error says of a device that this process will never launch on it.
bool is_final(int error) {
  switch (error) {
    case cudaErrorInsufficientDriver:
    case cudaErrorNoDevice:
    case cudaErrorInvalidDevice:
    case cudaErrorNoKernelImageForDevice:
    case cudaErrorInvalidDeviceFunction:
    case cudaErrorInvalidKernelImage:
    case cudaErrorInvalidPtx:
    case cudaErrorUnsupportedPtxVersion:
    case cudaErrorJitCompilerNotFound:
    case cudaErrorJitCompilationDisabled: return true;
    default: return false;
  }
}

}  // namespace

int device_limits(int device, DeviceLimits* limits) {
  int major = 0, minor = 0;
  const struct {
    int* to;
    cudaDeviceAttr what;
  } wanted[] = {{&major, cudaDevAttrComputeCapabilityMajor},
                {&minor, cudaDevAttrComputeCapabilityMinor},
                {&limits->sms, cudaDevAttrMultiProcessorCount},
                {&limits->shared_per_block, cudaDevAttrMaxSharedMemoryPerBlockOptin},
                {&limits->shared_per_sm, cudaDevAttrMaxSharedMemoryPerMultiprocessor}};
  for (const auto& w : wanted)
    if (const cudaError_t e = cudaDeviceGetAttribute(w.to, w.what, device); e != cudaSuccess) {
      cudaGetLastError();
      return e;
    }
  limits->capability = 10 * major + minor;
  return 0;
}

bool usable_limits(int device, DeviceLimits* limits) {
  const int unreadable = device_limits(device, limits);
  int error = unreadable;
  if (!error) {
    cudaFuncAttributes attributes;
    error = cudaFuncGetAttributes(&attributes, any_kernel());
    if (error) cudaGetLastError();
  }
  if (unreadable || is_final(error)) *limits = {};
  return !error || is_final(error);
}

// A function has one limit per device, which a smaller launch must not lower: another host thread may be about to launch
// a larger one, and a graph that holds both is checked against it when it is instantiated. So it is set once.
cudaError_t allow_shared(const void* kernel) {
  static std::mutex mutex;
  static std::set<std::pair<const void*, int>> done;
  int device = 0, most = 0;
  if (const cudaError_t e = cudaGetDevice(&device)) return e;
  const std::lock_guard<std::mutex> lock(mutex);
  if (done.count({kernel, device})) return cudaSuccess;
  if (const cudaError_t e = cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device)) return e;
  if (const cudaError_t e = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, most)) return e;
  done.insert({kernel, device});
  return cudaSuccess;
}
#else
int device_limits(int, DeviceLimits* limits) {
  *limits = {90, 132, 227 << 10, 228 << 10};
  return 0;
}

bool usable_limits(int device, DeviceLimits* limits) { return device_limits(device, limits) == 0; }
#endif

int launch(const LaunchPlan& plan, const Tensors& tensors, void* stream) {
#define REPLKNET_EXT_ENTRY(name) launch_##name,
  static constexpr LaunchFunction launchers[] = {REPLKNET_EXT_FAMILIES(REPLKNET_EXT_ENTRY)};
#undef REPLKNET_EXT_ENTRY
  return plan.problem.n == 0 ? 0 : launchers[plan.family_index](plan, tensors, stream);
}

const char* error_message(int error) { return launch_message(error); }

}  // namespace replknet_ext::cuda
