#include "fma.cuh"
#include "args.h"

namespace replknet_ext::cuda {

FmaKernel fma_f32(bool weight, int variant) {
#define FMA_FWD(name, type, rows, warps, blocks) fma_kernel<type, rows, false, warps, blocks>,
#define FMA_WEIGHT(name, type, rows, warps, blocks) fma_kernel<type, rows, true, warps, blocks>,
  static constexpr FmaKernel fwd[] = {FMA_VARIANTS(FMA_FWD)}, weights[] = {FMA_VARIANTS(FMA_WEIGHT)};
#undef FMA_WEIGHT
#undef FMA_FWD
  return (weight ? weights : fwd)[variant];
}

}  // namespace replknet_ext::cuda
