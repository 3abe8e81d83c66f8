// Launches the wgmma kernels.
#include "../family.h"
#include "../toeplitz_fwd/launch.h"
#include "args.h"

namespace replknet_ext::cuda {

int launch_toeplitz_wgmma(const LaunchPlan& any, const Tensors& t, void* stream) {
  const ToeplitzFwdPlan& plan = static_cast<const ToeplitzFwdPlan&>(any);
  const bool bf16 = plan.problem.dtype == DType::bf16;
  return launch_groups(bf16 ? toeplitz_wgmma_bf16(plan.family_variant) : toeplitz_wgmma_f16(plan.family_variant), plan, t, stream);
}

}  // namespace replknet_ext::cuda
