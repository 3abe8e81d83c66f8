// Plans are kept by problem and device: plan_cache.h one folder up.
#pragma once
#include "../plan_cache.h"
#include "dwconv2d_cuda.h"

namespace replknet_ext::cuda {

inline bool operator==(const DeviceLimits& a, const DeviceLimits& b) {
  return a.capability == b.capability && a.sms == b.sms && a.shared_per_block == b.shared_per_block &&
         a.shared_per_sm == b.shared_per_sm;
}

}  // namespace replknet_ext::cuda
