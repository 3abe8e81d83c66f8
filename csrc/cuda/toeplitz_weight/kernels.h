// The kernels behind the variants table; one file a dtype, so that they compile side by side.
#pragma once
#include "rt_weight_args.h"

namespace replknet_ext::cuda {

using RtwKernel = void (*)(RtwArgs);
RtwKernel rt_weight_f16(int variant);
RtwKernel rt_weight_bf16(int variant);
RtwKernel rt_weight_f32(int variant);

}  // namespace replknet_ext::cuda
