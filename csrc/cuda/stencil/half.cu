#include "stencil.cuh"
#include "args.h"

namespace replknet_ext::cuda {

StencilKernel stencil_half(bool weight, int kernel) {
#define STENCIL_FWD(name, type, taps, last, blocks, rows, weight_blocks) stencil_kernel<type, taps, last, blocks>,
#define STENCIL_WEIGHT(name, type, taps, last, blocks, rows, weight_blocks) \
  stencil_weight_kernel<type, taps, rows, last, weight_blocks>,
  static constexpr StencilKernel fwd[] = {STENCIL_HALF_VARIANTS(STENCIL_FWD)};
  static constexpr StencilKernel weights[] = {STENCIL_HALF_VARIANTS(STENCIL_WEIGHT)};
#undef STENCIL_WEIGHT
#undef STENCIL_FWD
  return (weight ? weights : fwd)[kernel];
}

}  // namespace replknet_ext::cuda
