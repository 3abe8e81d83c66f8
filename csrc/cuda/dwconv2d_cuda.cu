#include "dwconv2d_cuda.h"

#include "ptx.cuh"
#include "rt_fwd_kernels.h"
#include "rt_plan.h"
#include "rt_variants.h"

namespace replknet_ext::cuda {
namespace {

constexpr int64_t kMostBlocksY = 65535;

// Bytes of the widest access that every row start of a plane allows: rows follow each other without gaps.
int access_bytes(const void* p, int64_t width) {
  const uint64_t m = reinterpret_cast<uint64_t>(p) | static_cast<uint64_t>(width) * 2 | 16;
  return static_cast<int>(m & (~m + 1));
}
}  // namespace

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

int fwd_variant_count() { return kRtFwdCount; }
const char* fwd_variant_name(int variant) { return variant >= 0 && variant < kRtFwdCount ? kRtFwd[variant].name : nullptr; }

const char* fwd_supports(const Problem& p, const DeviceLimits& limits, int variant) {
  RtPlan plan;
  return plan_rt_fwd(p, limits, variant, &plan);
}

const char* plan_fwd(const Problem& p, const DeviceLimits& limits, int variant, LaunchPlan* out) {
  RtPlan plan;
  const char* why = plan_rt_fwd(p, limits, variant, &plan);
  if (!why) *out = plan.plan;
  return why;
}

int launch_fwd(const Problem& p, const void* x, const void* w, const void* bias, void* y, int variant,
               const DeviceLimits& limits, void* stream) {
  RtPlan plan;
  if (plan_rt_fwd(p, limits, variant, &plan)) return kUnsupported;
  if (p.n == 0) return 0;
  RtArgs a = plan.args;
  a.x = static_cast<const uint16_t*>(x);
  a.w = static_cast<const uint16_t*>(w);
  a.bias = static_cast<const uint16_t*>(bias);
  a.y = static_cast<uint16_t*>(y);
  a.in_vec = access_bytes(x, p.w);
  a.out_vec = access_bytes(y, p.wo);
  const auto kernel = (p.dtype == DType::bf16 ? rt_fwd_bf16 : rt_fwd_f16)(plan.plan.variant);
  const int64_t columns = static_cast<int64_t>(a.c) * a.pair_tiles * a.chunk_tiles;
  int64_t left = (plan.groups + a.block_groups - 1) / a.block_groups;
  for (; left > 0; left -= kMostBlocksY, a.group0 += static_cast<int>(kMostBlocksY) * a.block_groups) {
    const dim3 grid(static_cast<unsigned>(columns), static_cast<unsigned>(left < kMostBlocksY ? left : kMostBlocksY));
    if (const auto e = launch_kernel(kernel, grid, dim3(plan.plan.warps * 32), plan.plan.shared_bytes, stream, a))
      return static_cast<int>(e);
  }
  return 0;
}

const char* error_message(int error) {
  return error == kUnsupported ? "no CUDA kernel of this package runs this problem on this device" : launch_message(error);
}

}  // namespace replknet_ext::cuda
