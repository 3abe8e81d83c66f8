// What the torch side of every backend shares: from tensors and strings to a Problem.
#pragma once
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/MemoryFormat.h>
#include <torch/headeronly/core/ScalarType.h>

#include <optional>
#include <string>
#include <vector>

#include "../problem.h"

namespace replknet_ext {

// A string argument. torch's own conversion to std::string leaks it on every call (torch 2.11 to 2.13).
struct Text : std::string {
  using std::string::string;
  Text(std::string value) : std::string(std::move(value)) {}
};

using torch::headeronly::MemoryFormat;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr int64_t kPlanned = -1;  // the variant that the backend's planner chooses

// A variant's number as planners take it; an error where no backend could have it.
int variant_number(int64_t variant);

// The arguments of an op after its tensors.
struct Options {
  const std::vector<int64_t>& padding;  // top, bottom, left, right
  const std::string& precision;
  const std::string& algorithm;
  const std::string& backend;
  int64_t variant;
};

// Each checks its arguments (an error names the wrong one) and describes the op as a Problem: bwd_input as a fwd conv of
// the gradient with the rotated filter and mirrored pads, bwd_weight as the fwd conv it belongs to.
Problem fwd_problem(const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias, const Options& options,
                    const std::string& activation);
Problem bwd_input_problem(const Tensor& grad_output, const Tensor& weight, const Options& options);
Problem bwd_weight_problem(const Tensor& grad_output, const Tensor& input, const Options& options);

// A problem by its numbers, for queries: sizes are n, c, h, w, kh, kw, ho, wo, pad_top, pad_left of the conv that runs.
Problem problem_of(const std::vector<int64_t>& sizes, const std::string& dtype, bool channels_last,
                   const std::string& pass, const std::string& precision, const std::string& algorithm);

inline MemoryFormat memory_format(const Problem& p) {
  return p.channels_last ? MemoryFormat::ChannelsLast : MemoryFormat::Contiguous;
}
Tensor empty_like(const Tensor& like, const std::vector<int64_t>& sizes, MemoryFormat format);

}  // namespace replknet_ext

template <>
struct torch::stable::detail::FromImpl<replknet_ext::Text> : FromImpl<std::string> {};
template <>
struct torch::stable::detail::ToImpl<replknet_ext::Text> {
  static replknet_ext::Text call(StableIValue value, uint64_t, bool) {
    const StringHandle handle = to<StringHandle>(value);
    size_t length = 0;
    const char* data = nullptr;
    TORCH_ERROR_CODE_CHECK(torch_string_length(handle, &length));
    TORCH_ERROR_CODE_CHECK(torch_string_c_str(handle, &data));
    replknet_ext::Text text(data, length);
    TORCH_ERROR_CODE_CHECK(torch_delete_string(handle));
    return text;
  }
};
