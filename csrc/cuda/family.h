// A family of CUDA kernels: one algorithm, its variants, its planner. A new family is a line here.
#pragma once
#include "dwconv2d_cuda.h"

// rt_fwd: fwd and bwd_input on tensor cores; rt_weight: bwd_weight on tensor cores
// small: all passes of small planes in 16-bit types, on tensor cores (channels_last: fwd and bwd_input)
// fma: float32 and float64 on the FMA pipe, all passes; fft: float32 and 16 bit by fused transforms, all passes
// stencil: filters of up to 11 x 11 on the FMA pipe, all dtypes but float64, all passes
#define REPLKNET_EXT_FAMILIES(X) X(rt_fwd) X(rt_weight) X(small) X(stencil) X(fma) X(fft)

namespace replknet_ext::cuda {

struct Family {
  const char* name;
  int (*count)(Pass pass);  // variants of a pass, numbered from 0 within the family
  const char* (*variant_name)(Pass pass, int variant);
  // Null and the plan, or the reason why not; variant -1: the family's best. Cheap when asked again (plan_cache.h).
  const char* (*plan)(const Problem& p, const DeviceLimits& limits, int variant, LaunchPlan* plan);
};

using LaunchFunction = int (*)(const Problem& p, const Tensors& tensors, const DeviceLimits& limits, int variant,
                               void* stream);

// x_family is host code (x_plan.cpp), launch_x is not (x_launch.cu): planners are also used without CUDA. launch_x
// launches a variant that the plan accepted for these arguments, and returns 0 or a CUDA error.
#define REPLKNET_EXT_DECLARE(name)   \
  extern const Family name##_family; \
  int launch_##name(const Problem& p, const Tensors& tensors, const DeviceLimits& limits, int variant, void* stream);
REPLKNET_EXT_FAMILIES(REPLKNET_EXT_DECLARE)
#undef REPLKNET_EXT_DECLARE

// Which family runs a problem: its place in REPLKNET_EXT_FAMILIES and the number of its variant 0.
struct Choice {
  int family, first;
  LaunchPlan plan;
};
const char* choose(const Problem& p, const DeviceLimits& limits, int variant, Choice* choice);

}  // namespace replknet_ext::cuda
