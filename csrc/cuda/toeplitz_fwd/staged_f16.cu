#include "rt_fwd_kernels.h"
#include "rt_fwd_staged.cuh"

namespace replknet_ext::cuda {

RtKernel rt_staged_f16(int kernel) {
#define RT_KERNEL(name, offsets, pairs, chunks, whole, warps, blocks, blocks_elsewhere) \
  rt_staged_kernel<RtMode::f16, offsets, pairs, chunks, whole, warps, blocks, blocks_elsewhere>,
  static constexpr RtKernel kernels[] = {RT_STAGED_HALF_VARIANTS(RT_KERNEL)};
#undef RT_KERNEL
  return kernels[kernel];
}

}  // namespace replknet_ext::cuda
