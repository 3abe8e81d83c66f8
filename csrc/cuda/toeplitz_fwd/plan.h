// From a problem to launch numbers: which variant, which tile. Host code without CUDA.
#pragma once
#include "dwconv2d_cuda.h"
#include "rt_fwd_args.h"

namespace replknet_ext::cuda {

struct RtPlan : LaunchPlan {
  RtArgs args;  // without pointers and group0
  int64_t groups;  // groups of 8 slots of the whole batch
};

}  // namespace replknet_ext::cuda
