// From a problem to launch numbers: which variant, which tile. Host code without CUDA.
#pragma once
#include "../backend.h"
#include "args.h"

namespace replknet_ext::cuda {

struct StencilPlan : LaunchPlan {
  StencilArgs args;  // without pointers; accesses as wide as 16-byte aligned tensors allow
  int splits;
};

}  // namespace replknet_ext::cuda
