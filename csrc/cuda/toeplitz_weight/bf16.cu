#include "toeplitz_weight.cuh"
#include "args.h"

namespace replknet_ext::cuda {
namespace {
// null where a variant is of float32
template <ToeplitzWeightMath kMath, int kLine, int kOffsets, int kRows, int kChunks, bool kWhole, int kWarps>
constexpr ToeplitzWeightKernel kernel() {
  if constexpr (kMath == ToeplitzWeightMath::half)
    return toeplitz_weight_kernel<ToeplitzWeightKernelMath::bf16, kOffsets, kRows, kChunks, kWhole, kWarps, kLine>;
  else
    return nullptr;
}
}  // namespace

ToeplitzWeightKernel toeplitz_weight_bf16(int variant) {
#define TOEPLITZ_KERNEL(name, math, line, offsets, rows, chunks, whole, warps) \
  kernel<ToeplitzWeightMath::math, line, offsets, rows, chunks, whole, warps>(),
  static constexpr ToeplitzWeightKernel kernels[] = {TOEPLITZ_WEIGHT_VARIANTS(TOEPLITZ_KERNEL)};
#undef TOEPLITZ_KERNEL
  return kernels[variant];
}

}  // namespace replknet_ext::cuda
