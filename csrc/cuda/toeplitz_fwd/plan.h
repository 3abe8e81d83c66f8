// From a problem to launch numbers: which variant, which tile. Host code without CUDA.
#pragma once
#include "../backend.h"
#include "args.h"

namespace replknet_ext::cuda {

struct ToeplitzFwdPlan : LaunchPlan {
  ToeplitzFwdArgs args;  // without pointers and group0
  int64_t groups;  // groups of 8 slots of the whole batch
};

}  // namespace replknet_ext::cuda
