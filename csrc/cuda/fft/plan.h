// From a problem to launch numbers: which length, which tiles. Host code without CUDA.
#pragma once
#include "../backend.h"
#include "args.h"

namespace replknet_ext::cuda {

struct FftPlan : LaunchPlan {
  FftArgs args;  // without pointers
};

}  // namespace replknet_ext::cuda
