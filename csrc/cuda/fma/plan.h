// From a problem to launch numbers: which variant, which tile. Host code without CUDA.
#pragma once
#include "../backend.h"
#include "args.h"

namespace replknet_ext::cuda {

struct FmaPlan : LaunchPlan {
  FmaArgs args;  // without pointers, strides and image0
  int64_t splits;  // groups of images of the whole batch: the grid's second axis
};

}  // namespace replknet_ext::cuda
