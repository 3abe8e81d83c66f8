#include "fwd.cuh"
#include "args.h"

namespace replknet_ext::cuda {

SmallFwdKernel small_fwd_bf16(int variant) {
#define SMALL_KERNEL(name, groups, even, last, warps) small_fwd_kernel<true, groups, even, last, warps>,
  static constexpr SmallFwdKernel kernels[] = {SMALL_FWD_VARIANTS(SMALL_KERNEL)};
#undef SMALL_KERNEL
  return kernels[variant];
}

}  // namespace replknet_ext::cuda
