#include "choices.h"

#include <atomic>

#include "plan_cache.h"

namespace replknet_ext {
namespace {

// Counts the times that choices have changed. 0: nobody is there to be asked, as in a program without Python.
std::atomic<uint64_t> generation{0};

void forget_choices() { generation++; }

// What a choice depends on beside its Problem.
struct Asked {
  uint64_t generation;
  int32_t device;
  int threads;
  bool bias, own;
};
std::array<int64_t, 5> numbers_of(const Asked& a) {
  return {static_cast<int64_t>(a.generation), a.device, a.threads, a.bias, a.own};
}

}  // namespace

Chosen chosen(const Problem& p, const Call& call, int64_t variant, int32_t device, int threads) {
  if (variant >= kPlanned) return {false, variant};
  STD_TORCH_CHECK(variant >= kMeasuredOwn, "variant must be a number of a kernel, -1 (the planner's choice), -2 (measured) "
                  "or -3 (measured, of this op's kernels); got ", variant);
  const bool bias = call.bias.has_value() || std::string(call.pass) == "bwd_weight_bias";
  const Asked asked{generation, device, threads, bias, variant == kMeasuredOwn};
  Chosen result{false, kPlanned};
  if (p.n == 0 || asked.generation == 0) return result;
  cached_plan<Chosen, Asked>(p, numbers_of(asked), static_cast<int>(variant), &result, [&](Chosen* found) -> const char* {
    std::tie(found->triton, found->variant) = call_op<int64_t, int64_t>(
        "replknet_ext::_choice", std::string(call.pass), call.first, call.second, call.bias, call.options.padding,
        call.activation, call.options.precision, call.options.algorithm, asked.own);
    return nullptr;
  });
  return result;
}

}  // namespace replknet_ext

STABLE_TORCH_LIBRARY_IMPL(replknet_ext, CompositeExplicitAutograd, m) {
  m.impl("_forget_choices", TORCH_BOX(&replknet_ext::forget_choices));
}
