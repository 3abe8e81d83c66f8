// A family of CUDA kernels: one algorithm, its variants, its planner. A new family is a line here.
#pragma once
#include <algorithm>

#include "backend.h"

// toeplitz_fwd: fwd and bwd_input on tensor cores; toeplitz_ring: the same in NCHW and 16 bit, rows stream through;
// toeplitz_wgmma: that ring by the instructions of sm_90a; toeplitz_weight: bwd_weight on tensor cores
// small_planes: all passes of small planes in 16-bit types, on tensor cores (channels_last: fwd and bwd_input)
// fma: float32 and float64 on the FMA pipe, all passes; fft: float32 and 16 bit by fused transforms, all passes
// stencil: filters of up to 11 x 11 on the FMA pipe, all dtypes but float64, all passes
#define REPLKNET_EXT_FAMILIES(X) X(toeplitz_fwd) X(toeplitz_weight) X(small_planes) X(stencil) X(fma) X(toeplitz_ring) X(toeplitz_wgmma) X(fft)

namespace replknet_ext::cuda {

// How many candidates a family's planner looks at: those that look at few are asked first, and what they find is a bound
// by which the others leave most of theirs out.
enum class Candidates { few, many, most };

struct Family {
  const char* name;
  Candidates candidates;
  bool measured;  // else its plans are used by the variant's number alone: what they cost is not known
  int (*count)(Pass pass);  // variants of a pass, numbered from 0 within the family
  const char* (*variant_name)(Pass pass, int variant);
  // Null and the plan, or the reason why not; variant -1: the family's best, if it takes less than `below` cycles. Of the
  // common part of a plan it leaves problem, family and variant to its caller.
  const char* (*plan)(const Problem& p, const DeviceLimits& limits, int variant, double below,
                      std::shared_ptr<LaunchPlan>* plan);
};

// x_family is host code (x/plan.cpp), launch_x is not (x/launch.cu): planners are also used without CUDA. launch_x
// launches a plan that its family made, of a batch that is not empty, and returns 0 or a CUDA error.
using LaunchFunction = int (*)(const LaunchPlan& plan, const Tensors& tensors, void* stream);
#define REPLKNET_EXT_DECLARE(name)   \
  extern const Family name##_family; \
  int launch_##name(const LaunchPlan& plan, const Tensors& tensors, void* stream);
REPLKNET_EXT_FAMILIES(REPLKNET_EXT_DECLARE)
#undef REPLKNET_EXT_DECLARE

// Family::plan by a family's Planner, which is made for one problem (of at least one image) and device and has
//   using Plan = ...;                          derived from LaunchPlan
//   static int count(Pass);                    as in Family
//   static const char* name(Pass, int variant);
//   const char* refuse() const;                why no variant runs the problem, or null
//   const char* refuse(int variant) const;     why this one is not for such problems, or null
//   bool plan(int variant, Plan* best) const;  the variant's fastest plan, if it has one that takes less than best->cycles;
//                                              one that takes longer is no error
//   const char* none(int variant) const;       why it has none; -1: why no variant has one
template <class Planner>
const char* best_plan(const Problem& p, const DeviceLimits& limits, int variant, double below,
                      std::shared_ptr<LaunchPlan>* result) {
  Problem some = p;
  some.n = std::max<int64_t>(1, p.n);  // an empty batch has the plan of one image, and launches nothing
  const Planner planner(some, limits);
  if (const char* why = planner.refuse()) return why;
  if (variant >= 0)
    if (const char* why = planner.refuse(variant)) return why;
  const int first = variant < 0 ? 0 : variant, end = variant < 0 ? Planner::count(p.pass) : variant + 1;
  std::shared_ptr<typename Planner::Plan> best;
  for (int i = first; i < end; ++i) {
    typename Planner::Plan plan{};
    plan.cycles = below;
    if (planner.refuse(i) || !planner.plan(i, &plan) || plan.cycles >= below) continue;
    below = plan.cycles;
    plan.family_variant = i, plan.name = Planner::name(p.pass, i);
    best = std::make_shared<typename Planner::Plan>(plan);
  }
  *result = best;
  return best ? nullptr : planner.none(variant);
}

template <class Planner>
constexpr Family family_of(const char* name, Candidates candidates = Candidates::few, bool measured = true) {
  return {name, candidates, measured, Planner::count, Planner::name, best_plan<Planner>};
}

}  // namespace replknet_ext::cuda
