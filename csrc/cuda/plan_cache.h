// Plans are kept by problem, so that a repeated launch pays a look-up. One cache a thread and a kind of plan.
#pragma once
#include <initializer_list>

#include "dwconv2d_cuda.h"

namespace replknet_ext::cuda {

inline bool operator==(const DeviceLimits& a, const DeviceLimits& b) {
  return a.capability == b.capability && a.sms == b.sms && a.shared_per_block == b.shared_per_block &&
         a.shared_per_sm == b.shared_per_sm;
}

// make(plan) returns null or the reason why there is none, which is not kept. Tag keeps apart caches of one Plan type.
template <class Plan, class Tag, class Make>
const char* cached_plan(const Problem& p, const DeviceLimits& limits, int variant, Plan* plan, const Make& make) {
  struct Entry {
    bool used = false;
    Problem p;
    DeviceLimits limits;
    int variant;
    Plan plan;
  };
  constexpr int kEntries = 64;
  thread_local Entry cache[kEntries];
  uint64_t hash = static_cast<uint64_t>(variant) + 0x9e3779b97f4a7c15ull;
  for (int64_t v : {p.n, p.c, p.h, p.w, p.kh, p.kw, p.pad_top, p.pad_left, static_cast<int64_t>(p.flip),
                    static_cast<int64_t>(p.pass), static_cast<int64_t>(p.channels_last)})
    hash = (hash ^ static_cast<uint64_t>(v)) * 0x100000001b3ull;
  Entry& e = cache[(hash >> 32) % kEntries];
  if (e.used && e.variant == variant && e.limits == limits && e.p == p) {
    *plan = e.plan;
    return nullptr;
  }
  if (const char* why = make(plan)) return why;
  e.p = p, e.limits = limits, e.variant = variant, e.plan = *plan, e.used = true;
  return nullptr;
}

}  // namespace replknet_ext::cuda
