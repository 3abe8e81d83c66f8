// Launches the kernels of toeplitz_weight and adds the partial sums of the batch's parts.
#include "../family.h"
#include "../ptx.cuh"
#include "args.h"
#include "plan.h"
#include "../weight_sum.cuh"

namespace replknet_ext::cuda {
namespace {

int lowest_bit(uint64_t m) { return static_cast<int>(m & (~m + 1)); }

// Bytes of the widest access that every row of a tensor allows (NCHW), or every pixel (channels_last).
int access_bytes(const Problem& p, const void* tensor, int64_t width) {
  const int64_t element = p.dtype == DType::f32 ? 4 : 2;
  const int64_t run = (p.channels_last ? p.c : width) * element;
  return lowest_bit(reinterpret_cast<uint64_t>(tensor) | static_cast<uint64_t>(run) | 16);
}

}  // namespace

int launch_toeplitz_weight(const LaunchPlan& any, const Tensors& t, void* stream) {
  const ToeplitzWeightPlan& plan = static_cast<const ToeplitzWeightPlan&>(any);
  const Problem& p = plan.problem;
  const int number = plan.family_variant;
  ToeplitzWeightArgs a = plan.args;
  a.tensor[0].p = t.x, a.tensor[1].p = t.grad, a.out = t.out, a.grad_bias = t.grad_bias;
  set_access(p, number, a.block_channels, access_bytes(p, t.x, p.w), &a.tensor[0]);
  set_access(p, number, a.block_channels, access_bytes(p, t.grad, p.wo), &a.tensor[1]);
  if (a.splits > 1) a.partial = static_cast<float*>(t.workspace);
  const auto kernel = (p.dtype == DType::f32 ? toeplitz_weight_f32 : p.dtype == DType::f16 ? toeplitz_weight_f16 : toeplitz_weight_bf16)(number);
  const dim3 grid(static_cast<unsigned>(plan.blocks / a.splits), static_cast<unsigned>(a.splits));
  if (const auto e = launch_kernel(kernel, grid, dim3(plan.warps * 32), plan.shared_bytes, stream, a))
    return static_cast<int>(e);
  if (a.splits == 1) return 0;
  return launch_weight_sum(sums_by_channel(a.partial, a.out, a.grad_bias, p.c, p.kh * p.kw, a.splits, a.dtype), stream);
}

}  // namespace replknet_ext::cuda
