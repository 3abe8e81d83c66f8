// The kernels behind the variants table; one file per dtype, so that they compile side by side.
#pragma once
#include "args.h"

namespace replknet_ext::cuda {

using ToeplitzFwdKernel = void (*)(ToeplitzFwdArgs);
ToeplitzFwdKernel toeplitz_fwd_f16(int variant);
ToeplitzFwdKernel toeplitz_fwd_bf16(int variant);
ToeplitzFwdKernel toeplitz_staged_f16(int kernel);  // the staged ones by their place in their table
ToeplitzFwdKernel toeplitz_staged_bf16(int kernel);
ToeplitzFwdKernel toeplitz_staged_tf32(int kernel);
ToeplitzFwdKernel toeplitz_staged_bf16x3(int kernel);

}  // namespace replknet_ext::cuda
