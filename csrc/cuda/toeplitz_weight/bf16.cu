#include "rt_weight.cuh"
#include "rt_weight_kernels.h"

namespace replknet_ext::cuda {
namespace {
// null where a variant is of float32
template <RtwMath kMath, int kOffsets, int kRows, int kChunks, bool kWhole, int kWarps>
constexpr RtwKernel kernel() {
  if constexpr (kMath == RtwMath::half)
    return rt_weight_kernel<RtwKernelMath::bf16, kOffsets, kRows, kChunks, kWhole, kWarps>;
  else
    return nullptr;
}
}  // namespace

RtwKernel rt_weight_bf16(int variant) {
#define RT_KERNEL(name, math, offsets, rows, chunks, whole, warps) \
  kernel<RtwMath::math, offsets, rows, chunks, whole, warps>(),
  static constexpr RtwKernel kernels[] = {RT_WEIGHT_VARIANTS(RT_KERNEL)};
#undef RT_KERNEL
  return kernels[variant];
}

}  // namespace replknet_ext::cuda
