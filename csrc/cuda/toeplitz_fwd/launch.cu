// Launches the Toeplitz kernels: plan to arguments to grid.
#include "../family.h"
#include "launch.h"
#include "variants.h"

namespace replknet_ext::cuda {
namespace {

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
  return launch_groups(kernel_of(plan.problem, kToeplitzFwd[plan.family_variant]), plan, t, stream);
}

}  // namespace replknet_ext::cuda
