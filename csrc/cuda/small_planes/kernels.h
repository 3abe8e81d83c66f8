// The kernels behind the tables of variants; one file per dtype, so that they compile side by side.
#pragma once
#include "args.h"

namespace replknet_ext::cuda {

using SmallFwdKernel = void (*)(SmallFwdArgs);
using SmallWeightKernel = void (*)(SmallWeightArgs);
SmallFwdKernel small_fwd_f16(int variant);
SmallFwdKernel small_fwd_bf16(int variant);
SmallWeightKernel small_weight_f16(int variant);
SmallWeightKernel small_weight_bf16(int variant);

}  // namespace replknet_ext::cuda
