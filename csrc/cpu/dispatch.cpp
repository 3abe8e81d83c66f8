#include "../plan_cache.h"
#include "backend.h"
#include "model.h"

#include <cstdlib>
#include <cstring>

namespace replknet_ext::cpu {
namespace {

const Isa& detect() {
#if defined(__x86_64__)
  const char* cap = std::getenv("REPLKNET_EXT_CPU_ISA");
  const bool allow_avx2 = cap == nullptr || std::strcmp(cap, "base") != 0;
  const bool allow_avx512 = allow_avx2 && (cap == nullptr || std::strcmp(cap, "avx2") != 0);
  __builtin_cpu_init();
  if (allow_avx512 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
    return avx512::table;
  if (allow_avx2 && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return avx2::table;
#endif
  return base::table;
}

bool admits(Algorithm asked, const Kernel& kernel) { return asked == Algorithm::automatic || asked == kernel.algorithm; }

const char* plan_variant(const Problem& p, int threads, int number, Plan* plan) {
  const Kernel& kernel = variant(p.pass, number);
  if (!admits(p.algorithm, kernel))
    return p.algorithm == Algorithm::fft ? "it computes directly, and algorithm 'fft' was asked for"
                                         : "it is an FFT, and algorithm 'direct' was asked for";
  return kernel.plan(p, threads, plan);
}

const char* make_choice(const Problem& p, int threads, int number, Choice* choice) {
  const int count = variant_count(p.pass);
  if (number < -1 || number >= count) return "there is no variant of that number";
  if (number == -1) {
    Problem typical = p;
    typical.n = kTypicalBatch;
    const char* reason = "this build has no kernel of that algorithm";
    double best = 0;
    for (int i = 0; i < count; i++) {
      Plan plan;
      if (!admits(p.algorithm, variant(p.pass, i))) continue;
      if (const char* why = plan_variant(typical, 1, i, &plan)) {
        reason = why;
        continue;
      }
      if (number == -1 || plan.cost < best) number = i, best = plan.cost;
    }
    if (number == -1) return reason;
  }
  choice->variant = number;
  return plan_variant(p, threads, number, &choice->plan);
}

}  // namespace

const Isa& isa() {
  static const Isa& chosen = detect();
  return chosen;
}

int variant_count(Pass pass) { return pass == Pass::fwd ? isa().fwd_count : isa().bwd_weight_count; }
const Kernel& variant(Pass pass, int number) { return (pass == Pass::fwd ? isa().fwd : isa().bwd_weight)[number]; }

const char* choose(const Problem& p, int threads, int number, Choice* choice) {
  return cached_plan<Choice, struct Tag>(p, std::array<int64_t, 1>{threads}, number, choice,
                                         [&](Choice* out) { return make_choice(p, threads, number, out); });
}

}  // namespace replknet_ext::cpu
