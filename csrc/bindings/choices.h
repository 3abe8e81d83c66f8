// Which backend and which of its variants run a call. What was measured to be fastest is asked for when an op runs, so that
// compiled and exported code has it, too, and a new choice needs no new trace; what is known is in replknet_ext.choices.query.
#pragma once
#include <algorithm>
#include <array>
#include <string>
#include <tuple>
#include <type_traits>
#include <utility>

#include "arguments.h"

namespace replknet_ext {

// A backend by its name in replknet_ext.backends and its variant, or kPlanned. "auto": nothing was measured, the planner of
// the device's own kernels decides.
struct Choice {
  std::string backend;
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

// What runs a call. A call that names a variant, or a backend beside `own` (the device's compiled kernels), has its answer;
// otherwise what was measured, for a device (-1: the CPU) and a number of threads, or the planner's choice.
Choice chosen(const Problem& p, const Call& call, const char* own, int32_t device, int threads);

// Whether the device's compiled kernels are to run a choice.
inline bool is_own(const Choice& choice, const char* own) { return choice.backend == "auto" || choice.backend == own; }

template <class... Results, size_t... I>
std::tuple<Results...> results_of(const StableIValue* stack, std::index_sequence<I...>) {
  return {torch::stable::detail::to<Results>(stack[I])...};
}

// Throws the reason that an op written in Python gave for its failure.
[[noreturn]] void throw_failure(const char* op);

// Another op through torch's dispatcher.
template <class... Results, class... Args>
std::tuple<Results...> call_op(const char* op, const Args&... args) {
  std::array<StableIValue, std::max(sizeof...(Args), sizeof...(Results))> stack{torch::stable::detail::from(args)...};
  if (torch_call_dispatcher(op, "", stack.data(), TORCH_ABI_VERSION) != TORCH_SUCCESS) throw_failure(op);
  return results_of<Results...>(stack.data(), std::index_sequence_for<Results...>{});
}

// An op by a backend that is written in Python; the arguments up to `backend`.
template <class Result, class... Args>
Result by_python(const char* name, const Choice& choice, const Args&... args) {
  const std::string op = std::string("replknet_ext::_python_") + name;
  if constexpr (std::is_same_v<Result, Tensor>)
    return std::get<0>(call_op<Tensor>(op.c_str(), args..., choice.backend, choice.variant));
  else
    return call_op<Tensor, Tensor>(op.c_str(), args..., choice.backend, choice.variant);
}

}  // namespace replknet_ext
