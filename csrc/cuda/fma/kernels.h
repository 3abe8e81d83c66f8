// The kernels behind the variants table; one file per dtype, so that they compile side by side.
#pragma once
#include "args.h"

namespace replknet_ext::cuda {

using FmaKernel = void (*)(FmaArgs);
FmaKernel fma_f32(bool weight, int variant);
FmaKernel fma_f64(bool weight);

}  // namespace replknet_ext::cuda
