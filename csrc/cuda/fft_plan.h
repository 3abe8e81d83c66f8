// From a problem to launch numbers: which length, which tiles. Host code without CUDA.
#pragma once
#include "dwconv2d_cuda.h"
#include "fft_args.h"

namespace replknet_ext::cuda {

struct FftPlan {
  FftArgs args;  // without pointers
  LaunchPlan plan;
};

// Null or the reason why not. Plans are kept: plan_cache.h.
const char* plan_fft(const Problem& p, const DeviceLimits& limits, int variant, FftPlan* plan);

}  // namespace replknet_ext::cuda
