// The planners with the constants of model.h as variables, for fit.py: it compiles this with a copy of csrc in which
// they are no longer constexpr, and generates kConstants.
#include <cstring>
#include <limits>

#include "cuda/family.h"
#include "cuda/model.h"

using namespace replknet_ext;

namespace {
struct Constant {
  const char* name;
  double* value;
};
#include "constants.inc"  // constexpr Constant kConstants[] = {{"kMmaCycles", &cuda::kMmaCycles}, ...};

#define REPLKNET_EXT_ENTRY(name) &cuda::name##_family,
constexpr const cuda::Family* kFamilies[] = {REPLKNET_EXT_FAMILIES(REPLKNET_EXT_ENTRY)};
#undef REPLKNET_EXT_ENTRY
}  // namespace

// 1 if there is no constant of that name.
extern "C" int set_constant(const char* name, double value) {
  for (const Constant& constant : kConstants)
    if (std::strcmp(constant.name, name) == 0) return *constant.value = value, 0;
  return 1;
}

// Cycles of a variant (its number over all families), negative where it does not run the problem; never remembered.
// sizes: n, c, h, w, kh, kw, ho, wo, pad_top, pad_left; what: dtype, channels_last, flip, pass, precision as numbers;
// device: capability, multiprocessors, shared bytes per block and per multiprocessor.
extern "C" double cycles(const int64_t* sizes, const int* what, const int* device, int variant) {
  Problem p{sizes[0], sizes[1], sizes[2], sizes[3], sizes[4], sizes[5], sizes[6], sizes[7], sizes[8], sizes[9]};
  p.dtype = static_cast<DType>(what[0]);
  p.channels_last = what[1] != 0;
  p.flip = what[2] != 0;
  p.pass = static_cast<Pass>(what[3]);
  p.precision = static_cast<Precision>(what[4]);
  const cuda::DeviceLimits limits{device[0], device[1], device[2], device[3]};
  for (const cuda::Family* family : kFamilies) {
    const int count = family->count(p.pass);
    if (variant < count) {
      std::shared_ptr<cuda::LaunchPlan> plan;
      return family->plan(p, limits, variant, std::numeric_limits<double>::infinity(), &plan) ? -1 : plan->cycles;
    }
    variant -= count;
  }
  return -1;
}
