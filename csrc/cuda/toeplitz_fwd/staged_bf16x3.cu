#include "args.h"
#include "staged.cuh"

namespace replknet_ext::cuda {

ToeplitzFwdKernel toeplitz_staged_bf16x3(int kernel) {
#define TOEPLITZ_KERNEL(name, offsets, pairs, chunks, whole, warps, blocks, blocks_elsewhere) \
  toeplitz_staged_kernel<ToeplitzFwdMode::bf16x3, offsets, pairs, chunks, whole, warps, blocks, blocks_elsewhere>,
  static constexpr ToeplitzFwdKernel kernels[] = {TOEPLITZ_STAGED_FLOAT_VARIANTS(TOEPLITZ_KERNEL)};
#undef TOEPLITZ_KERNEL
  return kernels[kernel];
}

}  // namespace replknet_ext::cuda
