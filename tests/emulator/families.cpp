// Apart from bindings.cpp, since builds for planted bugs hold one family only and share everything else.
#include <cstring>
#include <limits>

#include "family.h"

// Number of the variant that a family's own planner chooses, over all families; *why: its reason if it has none.
int choice_of_family(const char* name, const replknet_ext::Problem& p, const replknet_ext::cuda::DeviceLimits& limits,
                     const char** why) {
  using namespace replknet_ext::cuda;
  const struct {
    const char* name;
    const Family* family;
  } families[] = {
#define REPLKNET_EXT_ENTRY(name) {#name, &name##_family},
      REPLKNET_EXT_FAMILIES(REPLKNET_EXT_ENTRY)
#undef REPLKNET_EXT_ENTRY
  };
  int first = 0;
  for (const auto& f : families) {
    if (std::strcmp(name, f.name) == 0) {
      std::shared_ptr<LaunchPlan> plan;
      *why = f.family->plan(p, limits, -1, std::numeric_limits<double>::infinity(), &plan);
      return *why ? -1 : first + plan->family_variant;
    }
    first += f.family->count(p.pass);
  }
  *why = "there is no family of that name";
  return -1;
}
