// The kernels behind the variants table; one file a dtype, so that they compile side by side.
#pragma once
#include "rt_fwd_args.h"

namespace replknet_ext::cuda {

using RtKernel = void (*)(RtArgs);
RtKernel rt_fwd_f16(int variant);
RtKernel rt_fwd_bf16(int variant);
RtKernel rt_staged_f16(int kernel);  // the staged ones by their place in their table
RtKernel rt_staged_bf16(int kernel);
RtKernel rt_staged_tf32(int kernel);
RtKernel rt_staged_bf16x3(int kernel);

}  // namespace replknet_ext::cuda
