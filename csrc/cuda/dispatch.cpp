// The table of families and the choice between them. Host code without CUDA.
#include <cstdlib>
#include <initializer_list>

#include "family.h"
#include "model.h"
#include "plan_cache.h"

namespace replknet_ext::cuda {
namespace {

#define REPLKNET_EXT_ENTRY(name) &name##_family,
constexpr const Family* kFamilies[] = {REPLKNET_EXT_FAMILIES(REPLKNET_EXT_ENTRY)};
#undef REPLKNET_EXT_ENTRY
constexpr int kFamilyCount = sizeof kFamilies / sizeof *kFamilies;

// The family of a variant's number, or -1, and the number of the family's first variant.
int family_of(Pass pass, int variant, int* first) {
  *first = 0;
  for (int f = 0; f < kFamilyCount; ++f) {
    const int count = kFamilies[f]->count(pass);
    if (variant < *first + count) return f;
    *first += count;
  }
  return -1;
}

const char* refuse(const Problem& p, const DeviceLimits& limits) {
  if (limits.capability < 80) return "needs a GPU of compute capability 8.0 or newer";
  constexpr int64_t kMost = 1 << 28;  // leaves room for sums of a few sizes in 32 bits
  if (p.c < 1 || p.h < 1 || p.w < 1 || p.kh < 1 || p.kw < 1 || p.ho < 1 || p.wo < 1 || p.n < 0) return "empty sizes";
  for (int64_t v : {p.n, p.c, p.h, p.w, p.kh, p.kw, p.ho, p.wo, std::abs(p.pad_top), std::abs(p.pad_left)})
    if (v > kMost) return "a size is beyond 2^28";
  return nullptr;
}

const char* make_choice(const Problem& p, const DeviceLimits& limits, int variant, Choice* best) {
  if (const char* why = refuse(p, limits)) return why;
  if (variant < -1 || variant >= variant_count(p.pass)) return "there is no variant of that number";
  if (variant >= 0) {
    best->family = family_of(p.pass, variant, &best->first);
    return kFamilies[best->family]->plan(p, limits, variant - best->first, &best->plan);
  }
  const char* reason = "no family of kernels has this pass";
  bool found = false;
  int first = 0;
  for (int f = 0; f < kFamilyCount; ++f) {
    Choice c{f, first, {}};
    const int count = kFamilies[f]->count(p.pass);
    first += count;
    if (count == 0) continue;
    if (const char* why = kFamilies[f]->plan(p, limits, -1, &c.plan)) {
      reason = why;  // of the last family that has the pass
      continue;
    }
    if (!found || c.plan.cycles < best->plan.cycles) *best = c;
    found = true;
  }
  return found ? nullptr : reason;
}

}  // namespace

const char* choose(const Problem& p, const DeviceLimits& limits, int variant, Choice* choice) {
  return cached_plan<Choice, struct Dispatch>(p, limits, variant, choice, [&](Choice* c) {
    const char* why = make_choice(p, limits, variant, c);
    if (!why) c->plan.variant += c->first, c->plan.family = kFamilies[c->family]->name;
    return why;
  });
}

int variant_count(Pass pass) {
  int n = 0;
  for (const Family* f : kFamilies) n += f->count(pass);
  return n;
}

const char* variant_name(Pass pass, int variant) {
  int first;
  const int f = variant < 0 ? -1 : family_of(pass, variant, &first);
  return f < 0 ? nullptr : kFamilies[f]->variant_name(pass, variant - first);
}

const char* supports(const Problem& p, const DeviceLimits& limits, int variant) {
  Choice choice;
  return choose(p, limits, variant, &choice);
}

const char* plan(const Problem& p, const DeviceLimits& limits, int variant, LaunchPlan* out) {
  Choice choice;
  const char* why = choose(p, limits, variant, &choice);
  if (!why) *out = choice.plan;
  return why;
}

const char* plan_route(Problem* p, const DeviceLimits& limits, int variant, LaunchPlan* out) {
  const char* why = plan(*p, limits, variant, out);
  if (!p->channels_last) return why;
  Problem copied = *p;
  copied.channels_last = false;
  LaunchPlan other;
  if (plan(copied, limits, variant, &other)) return why;
  other.cycles += copy_cycles(*p, limits);
  if (why || other.cycles < out->cycles) *out = other, *p = copied;
  return nullptr;
}

}  // namespace replknet_ext::cuda
