// From a problem to launch numbers: which variant, which tile. Host code without CUDA.
#pragma once
#include "dwconv2d_cuda.h"
#include "rt_fwd_args.h"

namespace replknet_ext::cuda {

struct RtPlan {
  RtArgs args;  // without pointers and group0
  LaunchPlan plan;
  int64_t groups;  // groups of 8 slots of the whole batch
};

// Null or the reason why not. Plans are kept: plan_cache.h.
const char* plan_rt_fwd(const Problem& p, const DeviceLimits& limits, int variant, RtPlan* plan);

}  // namespace replknet_ext::cuda
