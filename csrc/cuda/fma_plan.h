// From a problem to launch numbers: which variant, which tile. Host code without CUDA.
#pragma once
#include "dwconv2d_cuda.h"
#include "fma_args.h"

namespace replknet_ext::cuda {

struct FmaPlan {
  FmaArgs args;  // without pointers, strides and image0
  LaunchPlan plan;
  int64_t splits;  // groups of images of the whole batch: the grid's second axis
};

// Null or the reason why not. Plans are kept: plan_cache.h.
const char* plan_fma(const Problem& p, const DeviceLimits& limits, int variant, FmaPlan* plan);

}  // namespace replknet_ext::cuda
