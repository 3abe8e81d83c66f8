// The kernels behind the variants table; one file per dtype. Their arguments are those of toeplitz_fwd; of a block's tile,
// `plane` is the bytes of one group of slots in one stage, and `turns` the groups of slots that it computes one after the
// other, block_groups at a time.
#pragma once
#include "../toeplitz_fwd/args.h"

namespace replknet_ext::cuda {

// Input rows pass through this many stages of shared memory, each of this many row pairs: 4 rows, in 4x4 tiles 8.
constexpr int kRingStages = 4, kRingStagePairs = 2;

// Warps of a block at most; with 128 registers per thread they fill an SM, as do two blocks of 8.
constexpr int kRingWarps = 16;

ToeplitzFwdKernel toeplitz_ring_f16(int variant);
ToeplitzFwdKernel toeplitz_ring_bf16(int variant);

}  // namespace replknet_ext::cuda
