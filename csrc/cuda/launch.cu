#include "family.h"
#include "ptx.cuh"
#include "weight_sum.cuh"

namespace replknet_ext::cuda {
namespace {

// One thread a tap; the splits in order.
__global__ void __launch_bounds__(256) weight_sum(const __grid_constant__ WeightSumArgs a) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * 256 + threadIdx.x;
  if (i >= a.total) return;
  const int64_t channel = i / (a.taps + 1);
  const int tap = static_cast<int>(i - channel * (a.taps + 1));
  if (tap == a.taps && !a.grad_bias) return;
  float v = a.partial[i];
  for (int s = 1; s < a.splits; ++s) v += a.partial[s * a.total + i];
  if (tap == a.taps) store_result(a.grad_bias, channel, v, a.dtype);
  else store_result(a.out, channel * a.taps + tap, v, a.dtype);
}
}  // namespace

int launch_weight_sum(const WeightSumArgs& a, void* stream) {
  const dim3 grid(static_cast<unsigned>((a.total + 255) / 256));
  return static_cast<int>(launch_kernel(&weight_sum, grid, dim3(256), 0, stream, a));
}

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

int launch(const Problem& p, const Tensors& tensors, const DeviceLimits& limits, int variant, void* stream) {
#define REPLKNET_EXT_ENTRY(name) launch_##name,
  static constexpr LaunchFunction launchers[] = {REPLKNET_EXT_FAMILIES(REPLKNET_EXT_ENTRY)};
#undef REPLKNET_EXT_ENTRY
  Choice choice;
  if (choose(p, limits, variant, &choice)) return kUnsupported;
  return launchers[choice.family](p, tensors, limits, choice.plan.variant - choice.first, stream);
}

const char* error_message(int error) {
  return error == kUnsupported ? "no CUDA kernel of this package runs this problem on this device" : launch_message(error);
}

}  // namespace replknet_ext::cuda
