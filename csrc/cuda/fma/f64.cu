#include "fma.cuh"
#include "args.h"

namespace replknet_ext::cuda {

FmaKernel fma_f64(bool weight) {
#define FMA_KERNEL(name, type, rows, warps, blocks) \
  weight ? fma_kernel<type, rows, true, warps, blocks> : fma_kernel<type, rows, false, warps, blocks>
  return FMA_VARIANTS_F64(FMA_KERNEL);
#undef FMA_KERNEL
}

}  // namespace replknet_ext::cuda
