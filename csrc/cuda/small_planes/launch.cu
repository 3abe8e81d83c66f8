// Launches the kernels of small planes: plan to arguments to grid.
#include "../family.h"
#include "../ptx.cuh"
#include "args.h"
#include "plan.h"

namespace replknet_ext::cuda {

int launch_small_planes(const LaunchPlan& any, const Tensors& t, void* stream) {
  const SmallPlan& plan = static_cast<const SmallPlan&>(any);
  const Problem& p = plan.problem;
  const auto set = [&](SmallTensor* tensor, const void* data, int channels) {
    tensor->p = static_cast<const uint16_t*>(data);
    tensor->vec = small_access(p, reinterpret_cast<uint64_t>(data), tensor->pixels, channels);
  };
  const dim3 grid(static_cast<unsigned>(plan.blocks)), block(plan.warps * 32);
  if (p.pass == Pass::bwd_weight) {
    SmallWeightArgs a = plan.weight;
    const void* data[] = {t.x, t.grad};
    for (int i = 0; i < 2; ++i) {
      a.toeplitz.tensor[i].p = data[i];
      set(&a.run[i], data[i], a.toeplitz.block_channels);
      a.toeplitz.tensor[i].access = a.run[i].vec;
    }
    a.toeplitz.out = t.out, a.toeplitz.grad_bias = t.grad_bias;
    const auto kernel = (p.dtype == DType::bf16 ? small_weight_bf16 : small_weight_f16)(plan.family_variant);
    return static_cast<int>(launch_kernel(kernel, grid, block, plan.shared_bytes, stream, a));
  }
  SmallFwdArgs a = plan.fwd;
  set(&a.x, t.x, a.channels), set(&a.y, t.out, a.channels);
  a.w = static_cast<const uint16_t*>(t.w), a.bias = static_cast<const uint16_t*>(t.bias);
  const auto kernel = (p.dtype == DType::bf16 ? small_fwd_bf16 : small_fwd_f16)(plan.family_variant);
  return static_cast<int>(launch_kernel(kernel, grid, block, plan.shared_bytes, stream, a));
}

}  // namespace replknet_ext::cuda
