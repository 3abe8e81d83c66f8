// Launches the RT kernels: plan to arguments to grid.
#include "family.h"
#include "ptx.cuh"
#include "rt_fwd_kernels.h"
#include "rt_fwd_plan.h"
#include "rt_fwd_variants.h"

namespace replknet_ext::cuda {
namespace {

constexpr int64_t kMostBlocksY = 65535;

// Bytes of the widest access that every row start of a plane allows: rows follow each other without gaps.
int access_bytes(const void* p, int64_t width) {
  const uint64_t m = reinterpret_cast<uint64_t>(p) | static_cast<uint64_t>(width) * 2 | 16;
  return static_cast<int>(m & (~m + 1));
}
}  // namespace

int launch_rt_fwd(const Problem& p, const Tensors& t, const DeviceLimits& limits, int variant, void* stream) {
  RtPlan plan;
  if (plan_rt_fwd(p, limits, variant, &plan)) return kUnsupported;
  if (p.n == 0) return 0;
  RtArgs a = plan.args;
  a.x = static_cast<const uint16_t*>(t.x);
  a.w = static_cast<const uint16_t*>(t.w);
  a.bias = static_cast<const uint16_t*>(t.bias);
  a.y = static_cast<uint16_t*>(t.out);
  a.in_vec = access_bytes(t.x, p.w);
  a.out_vec = access_bytes(t.out, p.wo);
  const auto kernel = (p.dtype == DType::bf16 ? rt_fwd_bf16 : rt_fwd_f16)(variant);
  const int64_t columns = static_cast<int64_t>(a.c) * a.pair_tiles * a.chunk_tiles;
  int64_t left = (plan.groups + a.block_groups - 1) / a.block_groups;
  for (; left > 0; left -= kMostBlocksY, a.group0 += static_cast<int>(kMostBlocksY) * a.block_groups) {
    const dim3 grid(static_cast<unsigned>(columns), static_cast<unsigned>(left < kMostBlocksY ? left : kMostBlocksY));
    if (const auto e = launch_kernel(kernel, grid, dim3(plan.plan.warps * 32), plan.plan.shared_bytes, stream, a))
      return static_cast<int>(e);
  }
  return 0;
}


}  // namespace replknet_ext::cuda
