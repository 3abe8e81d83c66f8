// Plans are kept by problem, so that a repeated launch pays a look-up. One cache a thread and a kind of plan.
#pragma once
#include <initializer_list>

#include "dwconv.h"

namespace replknet_ext {

// make(plan) returns null or the reason why there is none, which is not kept. Tag keeps apart caches of one Plan type.
// Machine is what else a plan depends on (==).
template <class Plan, class Tag, class Machine, class Make>
const char* cached_plan(const Problem& p, const Machine& machine, int variant, Plan* plan, const Make& make) {
  struct Entry {
    bool used = false;
    Problem p;
    Machine machine;
    int variant;
    Plan plan;
  };
  constexpr int kEntries = 64;
  thread_local Entry cache[kEntries];
  uint64_t hash = static_cast<uint64_t>(variant) + 0x9e3779b97f4a7c15ull;
  for (int64_t v : {p.n, p.c, p.h, p.w, p.kh, p.kw, p.pad_top, p.pad_left, static_cast<int64_t>(p.flip),
                    static_cast<int64_t>(p.pass), static_cast<int64_t>(p.channels_last), static_cast<int64_t>(p.dtype),
                    static_cast<int64_t>(p.algorithm)}) {
    hash = (hash ^ static_cast<uint64_t>(v)) * 0x9e3779b97f4a7c15ull;
    hash ^= hash >> 32;  // every bit counts below, also those of the passes of one layer
  }
  Entry& e = cache[hash % kEntries];
  if (e.used && e.variant == variant && e.machine == machine && e.p == p) {
    *plan = e.plan;
    return nullptr;
  }
  if (const char* why = make(plan)) return why;
  e.p = p, e.machine = machine, e.variant = variant, e.plan = *plan, e.used = true;
  return nullptr;
}

}  // namespace replknet_ext
