// Launches the stencil kernels: plan to arguments to grid.
#include "../family.h"
#include "../ptx.cuh"
#include "args.h"
#include "plan.h"
#include "variants.h"
#include "../weight_sum.cuh"

namespace replknet_ext::cuda {
namespace {

StencilTensor tensor(const Problem& p, const void* at, int64_t h, int64_t w) {
  const int64_t size = p.dtype == DType::f32 ? 4 : 2, c = p.c;
  const bool last = p.channels_last && c > 1;  // one channel: the same memory
  StencilTensor t{at, c * h * w, h * w, w, 1, static_cast<int>(h), static_cast<int>(w), 1};
  if (last) t.channel = 1, t.row = w * c, t.column = c;
  const uint64_t m = reinterpret_cast<uint64_t>(at) | static_cast<uint64_t>((last ? c : w) * size) | 16;
  t.vec = static_cast<int>((m & (~m + 1)) / size);
  if (t.vec < 1) t.vec = 1;
  return t;
}
}  // namespace

int launch_stencil(const LaunchPlan& any, const Tensors& t, void* stream) {
  const StencilPlan& plan = static_cast<const StencilPlan&>(any);
  const Problem& p = plan.problem;
  const bool weight = p.pass == Pass::bwd_weight;
  StencilArgs a = plan.args;
  a.in = tensor(p, t.x, p.h, p.w);
  a.out = tensor(p, weight ? t.grad : t.out, p.ho, p.wo);
  a.filter = t.w, a.bias = t.bias;
  a.grad = t.out, a.grad_bias = t.grad_bias;
  if (plan.splits > 1) a.partial = static_cast<float*>(t.workspace);
  const StencilVariant& v = kStencil[plan.family_variant];
  const auto kernel = (v.is_float ? stencil_f32 : stencil_half)(weight, v.kernel);
  const dim3 grid(static_cast<unsigned>(plan.blocks));
  if (const auto e = launch_kernel(kernel, grid, dim3(kStencilThreads), plan.shared_bytes, stream, a))
    return static_cast<int>(e);
  if (plan.splits == 1) return 0;
  return launch_weight_sum(sums_by_channel(a.partial, a.grad, a.grad_bias, p.c, p.kh * p.kw, plan.splits, a.dtype), stream);
}

}  // namespace replknet_ext::cuda
