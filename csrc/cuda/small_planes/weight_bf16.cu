#include "args.h"
#include "weight.cuh"

namespace replknet_ext::cuda {

SmallWeightKernel small_weight_bf16(int variant) {
#define SMALL_KERNEL(name, chunks, rows, warps) small_weight_kernel<true, chunks, rows, warps>,
  static constexpr SmallWeightKernel kernels[] = {SMALL_WEIGHT_VARIANTS(SMALL_KERNEL)};
#undef SMALL_KERNEL
  return kernels[variant];
}

}  // namespace replknet_ext::cuda
