#include "args.h"
#include "staged.cuh"

namespace replknet_ext::cuda {

ToeplitzFwdKernel toeplitz_staged_f16(int kernel) {
#define TOEPLITZ_KERNEL(name, offsets, pairs, chunks, whole, warps, blocks, blocks_elsewhere) \
  toeplitz_staged_kernel<ToeplitzFwdMode::f16, offsets, pairs, chunks, whole, warps, blocks, blocks_elsewhere>,
  static constexpr ToeplitzFwdKernel kernels[] = {TOEPLITZ_STAGED_HALF_VARIANTS(TOEPLITZ_KERNEL)};
#undef TOEPLITZ_KERNEL
  return kernels[kernel];
}

}  // namespace replknet_ext::cuda
