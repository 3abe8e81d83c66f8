// The table of families and the choice between them. Host code without CUDA.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdlib>
#include <limits>

#include "../plan_cache.h"
#include "family.h"
#include "model.h"

namespace replknet_ext::cuda {
namespace {

#define REPLKNET_EXT_ENTRY(name) &name##_family,
constexpr const Family* kFamilies[] = {REPLKNET_EXT_FAMILIES(REPLKNET_EXT_ENTRY)};
#undef REPLKNET_EXT_ENTRY
constexpr int kFamilyCount = sizeof kFamilies / sizeof *kFamilies;

std::atomic<int64_t> made{0};

const char* refuse(const Problem& p, const DeviceLimits& limits) {
  if (limits.capability == 0) return "this build has no code for the GPU, or its CUDA runtime needs a newer driver";
  if (limits.capability < 80) return "needs a GPU of compute capability 8.0 or newer";
  if (limits.sms < 1) return "the device has no multiprocessors";
  constexpr int64_t kMost = 1 << 28;  // leaves room for sums of a few sizes in 32 bits
  if (p.c < 1 || p.h < 1 || p.w < 1 || p.kh < 1 || p.kw < 1 || p.ho < 1 || p.wo < 1 || p.n < 0) return "empty sizes";
  for (int64_t v : {p.n, p.c, p.h, p.w, p.kh, p.kw, p.ho, p.wo, std::abs(p.pad_top), std::abs(p.pad_left)})
    if (v > kMost) return "a size is beyond 2^28";
  if (p.kh * p.kw > kMost) return "the filter has more than 2^28 taps";
  const double planes = static_cast<double>(p.n) * static_cast<double>(p.c);
  if (planes * static_cast<double>(std::max(p.h * p.w, p.ho * p.wo)) > static_cast<double>(int64_t{1} << 40))
    return "a tensor has more than 2^40 elements";
  return nullptr;
}

const char* make_plan(const Problem& p, const DeviceLimits& limits, int variant, PlanHandle* result) {
  if (const char* why = refuse(p, limits)) return why;
  if (variant < -1 || variant >= variant_count(p.pass)) return "there is no variant of that number";
  const char* reason = "no family of kernels has this pass";
  int reason_of = -1;
  std::shared_ptr<LaunchPlan> best;
  const char* unmeasured = nullptr;
  for (const Candidates candidates : {Candidates::few, Candidates::many, Candidates::most}) {
    int first = 0;
    for (int f = 0; f < kFamilyCount; first += kFamilies[f++]->count(p.pass)) {
      const int count = kFamilies[f]->count(p.pass);
      if (kFamilies[f]->candidates != candidates || count == 0) continue;
      if (variant >= 0 && (variant < first || variant >= first + count)) continue;
      constexpr double kInfinity = std::numeric_limits<double>::infinity();
      const bool not_chosen = variant < 0 && !kFamilies[f]->measured;
      // of two that take the same time, the first in the table
      const double below = !best || not_chosen ? kInfinity : f < best->family_index ? std::nextafter(best->cycles, kInfinity) : best->cycles;
      std::shared_ptr<LaunchPlan> plan;
      if (const char* why = kFamilies[f]->plan(p, limits, variant < 0 ? -1 : variant - first, below, &plan)) {
        if (f > reason_of) reason = why, reason_of = f;  // of the last family that has the pass
        continue;
      }
      if (not_chosen) {
        unmeasured = plan->name;
        continue;
      }
      best = plan;
      best->problem = p, best->family_index = f, best->family = kFamilies[f]->name;
      best->variant = first + best->family_variant;
    }
  }
  if (best) best->unmeasured = unmeasured;
  *result = best;
  return best ? nullptr : reason;
}

}  // namespace

int variant_count(Pass pass) {
  int n = 0;
  for (const Family* f : kFamilies) n += f->count(pass);
  return n;
}

const char* variant_name(Pass pass, int variant) {
  if (variant < 0) return nullptr;
  for (const Family* f : kFamilies) {
    if (variant < f->count(pass)) return f->variant_name(pass, variant);
    variant -= f->count(pass);
  }
  return nullptr;
}

const char* plan(const Problem& p, const DeviceLimits& limits, int variant, PlanHandle* out) {
  const std::array<int64_t, 4> device{limits.capability, limits.sms, limits.shared_per_block, limits.shared_per_sm};
  return cached_plan<PlanHandle, struct Dispatch>(p, device, variant, out, [&](PlanHandle* result) {
    ++made;
    return make_plan(p, limits, variant, result);
  });
}

const char* plan_route(const Problem& p, const DeviceLimits& limits, int variant, Route* out) {
  Route route{nullptr, false, 0};
  const char* why = plan(p, limits, variant, &route.plan);
  if (!why) route.cycles = route.plan->cycles;
  if (p.channels_last) {
    Problem contiguous = p;
    contiguous.channels_last = false;
    Route other{nullptr, true, copy_cycles(p, limits)};
    if (!plan(contiguous, limits, variant, &other.plan)) {
      other.cycles += other.plan->cycles;
      if (why || other.cycles < route.cycles) route = other, why = nullptr;
    }
  }
  if (!why) *out = route;
  return why;
}

int64_t plans_made() { return made; }

}  // namespace replknet_ext::cuda
