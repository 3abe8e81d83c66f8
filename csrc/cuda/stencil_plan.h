// From a problem to launch numbers: which variant, which tile. Host code without CUDA.
#pragma once
#include "dwconv2d_cuda.h"
#include "stencil_args.h"

namespace replknet_ext::cuda {

struct StencilPlan {
  StencilArgs args;  // without pointers; accesses as wide as 16-byte aligned tensors allow
  LaunchPlan plan;
  int splits;
};

// Null or the reason why not. Plans are kept: plan_cache.h.
const char* plan_stencil(const Problem& p, const DeviceLimits& limits, int variant, StencilPlan* plan);

}  // namespace replknet_ext::cuda
