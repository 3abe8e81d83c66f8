#include "rt_fwd.cuh"
#include "rt_fwd_kernels.h"

namespace replknet_ext::cuda {

RtKernel rt_fwd_f16(int variant) {
#define RT_KERNEL(name, offsets, pairs, groups, chunks, whole, rotate, warps, blocks, blocks_elsewhere) \
  rt_fwd_kernel<false, offsets, pairs, groups, chunks, whole, rotate, warps, blocks, blocks_elsewhere>,
  static constexpr RtKernel kernels[] = {RT_FWD_VARIANTS(RT_KERNEL)};
#undef RT_KERNEL
  return kernels[variant];
}

}  // namespace replknet_ext::cuda
