// Which kernel was measured to be the fastest. Asked when an op runs, so that compiled and exported code has it, too, and
// a new choice needs no new trace; what is known of it is in replknet_ext.choices.
#pragma once
#include <algorithm>
#include <array>
#include <string>
#include <tuple>
#include <utility>

#include "glue.h"

namespace replknet_ext {

// What the argument `variant` may be beside a variant's number.
constexpr int64_t kPlanned = -1;      // the planner's choice
constexpr int64_t kMeasured = -2;     // what was measured to be best, of any backend, else the planner's choice
constexpr int64_t kMeasuredOwn = -3;  // the same of the op's own kernels

// A variant's number or kPlanned, and whether it is one of the op's namesake triton_*.
struct Chosen {
  bool triton;
  int64_t variant;
};

// An op as it was called, beside its Problem.
struct Call {
  const char* pass;  // "fwd", "bwd_input", "bwd_weight" or "bwd_weight_bias"
  const Tensor& first;
  const Tensor& second;
  const std::optional<Tensor>& bias;
  const Options& options;
  const std::string& activation;
};

// What runs a call of `variant`. A choice holds for a device (-1: the CPU) and a number of threads.
Chosen chosen(const Problem& p, const Call& call, int64_t variant, int32_t device, int threads);

template <class... Results, size_t... I>
std::tuple<Results...> results_of(const StableIValue* stack, std::index_sequence<I...>) {
  return {torch::stable::detail::to<Results>(stack[I])...};
}

// Another op through torch's dispatcher.
template <class... Results, class... Args>
std::tuple<Results...> call_op(const char* op, const Args&... args) {
  std::array<StableIValue, std::max(sizeof...(Args), sizeof...(Results))> stack{torch::stable::detail::from(args)...};
  TORCH_ERROR_CODE_CHECK(torch_call_dispatcher(op, "", stack.data(), TORCH_ABI_VERSION));
  return results_of<Results...>(stack.data(), std::index_sequence_for<Results...>{});
}

}  // namespace replknet_ext
