#include "toeplitz_wgmma.cuh"
#include "args.h"

namespace replknet_ext::cuda {

ToeplitzFwdKernel toeplitz_wgmma_bf16(int variant) {
#define TOEPLITZ_KERNEL(name, offsets, chunks, images) toeplitz_wgmma_kernel<true, offsets, chunks, images>,
  static constexpr ToeplitzFwdKernel kernels[] = {TOEPLITZ_WGMMA_VARIANTS(TOEPLITZ_KERNEL)};
#undef TOEPLITZ_KERNEL
  return kernels[variant];
}

}  // namespace replknet_ext::cuda
