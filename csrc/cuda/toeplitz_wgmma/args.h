// The kernels behind the variants table; one file per dtype. Their arguments are those of toeplitz_fwd; `turns` tiles of
// block_groups are computed one after the other.
#pragma once
#include "../toeplitz_fwd/args.h"

namespace replknet_ext::cuda {

constexpr int kWgmmaRing = 16;     // output row pairs in work, and warps that multiply
constexpr int kWgmmaProducers = 4; // warps that copy rows
constexpr int kWgmmaStages = 8;    // of shared memory that input row pairs pass through, one pair each
constexpr int kWgmmaBarriers = 128; // bytes: two barriers per stage

ToeplitzFwdKernel toeplitz_wgmma_f16(int variant);
ToeplitzFwdKernel toeplitz_wgmma_bf16(int variant);

}  // namespace replknet_ext::cuda
