// The kernels behind the variants table; one file per dtype, so that they compile side by side.
#pragma once
#include "args.h"

namespace replknet_ext::cuda {

using ToeplitzWeightKernel = void (*)(ToeplitzWeightArgs);
ToeplitzWeightKernel toeplitz_weight_f16(int variant);
ToeplitzWeightKernel toeplitz_weight_bf16(int variant);
ToeplitzWeightKernel toeplitz_weight_f32(int variant);

}  // namespace replknet_ext::cuda
