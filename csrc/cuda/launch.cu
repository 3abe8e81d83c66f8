// What every launch has in common: the device's limits, and the table of the families' launchers.
#include "family.h"
#include "ptx.cuh"

namespace replknet_ext::cuda {

int device_limits(int device, DeviceLimits* limits) {
#ifdef __CUDACC__
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
#else
  (void)device;
  *limits = {90, 132, 227 << 10, 228 << 10};
#endif
  return 0;
}

int launch(const LaunchPlan& plan, const Tensors& tensors, void* stream) {
#define REPLKNET_EXT_ENTRY(name) launch_##name,
  static constexpr LaunchFunction launchers[] = {REPLKNET_EXT_FAMILIES(REPLKNET_EXT_ENTRY)};
#undef REPLKNET_EXT_ENTRY
  return plan.problem.n == 0 ? 0 : launchers[plan.family_index](plan, tensors, stream);
}

const char* error_message(int error) { return launch_message(error); }

}  // namespace replknet_ext::cuda
