#include "toeplitz_fwd.cuh"
#include "args.h"

namespace replknet_ext::cuda {

ToeplitzFwdKernel toeplitz_fwd_f16(int variant) {
#define TOEPLITZ_KERNEL(name, line, offsets, pairs, groups, chunks, whole, rotate, warps, blocks, blocks_elsewhere) \
  toeplitz_fwd_kernel<false, offsets, pairs, groups, chunks, whole, rotate, warps, blocks, blocks_elsewhere, line>,
  static constexpr ToeplitzFwdKernel kernels[] = {TOEPLITZ_FWD_VARIANTS(TOEPLITZ_KERNEL)};
#undef TOEPLITZ_KERNEL
  return kernels[variant];
}

}  // namespace replknet_ext::cuda
