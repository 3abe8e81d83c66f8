#include <Python.h>

#include "choices.h"

#include <atomic>
#include <stdexcept>

#include "../plan_cache.h"

namespace replknet_ext {
namespace {

// Counts the times that choices have changed. 0: nobody is there to be asked, as in a program without Python.
std::atomic<int64_t> generation{0};

void forget_choices() { generation++; }

}  // namespace

Choice chosen(const Problem& p, const Call& call, const char* own, int32_t device, int threads) {
  const std::string& backend = call.options.backend;
  const int64_t variant = call.options.variant;
  variant_number(variant);
  STD_TORCH_CHECK(variant == kPlanned || backend != "auto", "variant ", variant,
                  " is one of a backend: name it by the argument backend, which is 'auto'");
  const Choice asked{backend, variant};
  if (variant != kPlanned || !is_own(asked, own) || p.n == 0) return asked;
  const int64_t now = generation;
  if (now == 0) return asked;
  const bool bias = call.bias.has_value() || std::string(call.pass) == "bwd_weight_bias";
  const std::array<int64_t, 5> about{now, device, threads, bias, backend == "auto"};
  Choice result;
  cached_plan<Choice, Call>(p, about, 0, &result, [&](Choice* found) -> const char* {
    // one string, as torch_call_dispatcher (2.11 to 2.13) mixes up the types of several results
    const auto answer = std::get<0>(call_op<Text>(
        "replknet_ext::_choice", std::string(call.pass), call.first, call.second, call.bias, call.options.padding,
        call.activation, call.options.precision, call.options.algorithm, backend));
    const size_t blank = answer.find(' ');
    *found = {answer.substr(0, blank), std::stoll(answer.substr(blank + 1))};
    return nullptr;
  });
  if (result.backend == "interrupted") {  // Ctrl-C: the call ends as planned, then Python sees it
    forget_choices();
    PyErr_SetInterrupt();
    return asked;
  }
  return result;
}

void throw_failure(const char* op) {
  std::array<StableIValue, 1> stack{};
  std::string why;
  if (generation != 0 &&
      torch_call_dispatcher("replknet_ext::_failure", "", stack.data(), TORCH_ABI_VERSION) == TORCH_SUCCESS)
    why = torch::stable::detail::to<Text>(stack[0]);
  throw std::runtime_error(why.empty() ? std::string(op) + " failed: nothing in this process runs it" : why);
}

}  // namespace replknet_ext

STABLE_TORCH_LIBRARY_IMPL(replknet_ext, CompositeExplicitAutograd, m) {
  m.impl("_forget_choices", TORCH_BOX(&replknet_ext::forget_choices));
}
