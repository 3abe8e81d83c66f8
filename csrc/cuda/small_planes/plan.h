// From a problem to launch numbers: which variant, how many channels a block. Host code without CUDA.
#pragma once
#include "../backend.h"
#include "args.h"

namespace replknet_ext::cuda {

struct SmallPlan : LaunchPlan {
  SmallFwdArgs fwd;  // without pointers and vec, which depend on them
  SmallWeightArgs weight;
};

// Bytes of a global access that every run, or pixel, of a full block allows, of planes of so many pixels from `address` on.
int small_access(const Problem& p, uint64_t address, int pixels, int channels);

}  // namespace replknet_ext::cuda
