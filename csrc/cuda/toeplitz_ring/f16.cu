#include "toeplitz_ring.cuh"
#include "args.h"

namespace replknet_ext::cuda {

ToeplitzFwdKernel toeplitz_ring_f16(int variant) {
#define TOEPLITZ_KERNEL(name, line, offsets, pairs, groups, chunks, whole) \
  toeplitz_ring_kernel<false, line, offsets, pairs, groups, chunks, whole>,
  static constexpr ToeplitzFwdKernel kernels[] = {TOEPLITZ_RING_VARIANTS(TOEPLITZ_KERNEL)};
#undef TOEPLITZ_KERNEL
  return kernels[variant];
}

}  // namespace replknet_ext::cuda
