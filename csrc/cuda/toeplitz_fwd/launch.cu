// Launches the Toeplitz kernels: plan to arguments to grid.
#include "../family.h"
#include "../ptx.cuh"
#include "args.h"
#include "plan.h"
#include "variants.h"

namespace replknet_ext::cuda {
namespace {

constexpr int64_t kMostBlocksY = 65535;

// Bytes of the widest access that p and every whole number of `step` bytes after it allow.
int access_bytes(const void* p, int64_t step) {
  const uint64_t m = reinterpret_cast<uint64_t>(p) | static_cast<uint64_t>(step) | 16;
  return static_cast<int>(m & (~m + 1));
}

ToeplitzFwdKernel kernel_of(const Problem& p, const ToeplitzFwdVariant& v) {
  const bool bf16 = p.dtype == DType::bf16;
  switch (v.kind) {
    case ToeplitzFwdKind::plain: return bf16 ? toeplitz_fwd_bf16(v.kernel) : toeplitz_fwd_f16(v.kernel);
    case ToeplitzFwdKind::half: return bf16 ? toeplitz_staged_bf16(v.kernel) : toeplitz_staged_f16(v.kernel);
    case ToeplitzFwdKind::tf32: return toeplitz_staged_tf32(v.kernel);
    default: return toeplitz_staged_bf16x3(v.kernel);
  }
}
}  // namespace

int launch_toeplitz_fwd(const LaunchPlan& any, const Tensors& t, void* stream) {
  const ToeplitzFwdPlan& plan = static_cast<const ToeplitzFwdPlan&>(any);
  const Problem& p = plan.problem;
  ToeplitzFwdArgs a = plan.args;
  a.x = static_cast<const uint16_t*>(t.x);
  a.w = static_cast<const uint16_t*>(t.w);
  a.bias = static_cast<const uint16_t*>(t.bias);
  a.y = static_cast<uint16_t*>(t.out);
  // rows follow each other without gaps, as do pixels; of those a block takes block_channels
  const int64_t bytes = p.dtype == DType::f32 ? 4 : 2, taken = (p.c | a.block_channels) * bytes;
  a.in_vec = access_bytes(t.x, a.channels_last ? taken : p.w * bytes);
  a.out_vec = access_bytes(t.out, a.channels_last ? taken : p.wo * bytes);
  const auto kernel = kernel_of(p, kToeplitzFwd[plan.family_variant]);
  const int64_t columns = static_cast<int64_t>((a.c - 1) / a.block_channels + 1) * a.pair_tiles * a.chunk_tiles;
  const int block_groups = a.block_groups * a.turns;
  int64_t left = (plan.groups + block_groups - 1) / block_groups;
  for (; left > 0; left -= kMostBlocksY, a.group0 += static_cast<int>(kMostBlocksY) * block_groups) {
    const dim3 grid(static_cast<unsigned>(columns), static_cast<unsigned>(left < kMostBlocksY ? left : kMostBlocksY));
    if (const auto e = launch_kernel(kernel, grid, dim3(plan.warps * 32), plan.shared_bytes, stream, a))
      return static_cast<int>(e);
  }
  return 0;
}

}  // namespace replknet_ext::cuda
