#include "arguments.h"

#include <algorithm>
#include <exception>
#include <limits>
#include <stdexcept>

#include "../names.h"

namespace replknet_ext {
namespace {

DType dtype_of(const Tensor& t, const char* name) {
  switch (t.scalar_type()) {
    case ScalarType::Double: return DType::f64;
    case ScalarType::Float: return DType::f32;
    case ScalarType::Half: return DType::f16;
    case ScalarType::BFloat16: return DType::bf16;
    default: break;
  }
  STD_TORCH_CHECK(false, name, " must be float64, float32, float16 or bfloat16");
  return DType::f32;
}

// torch's own rule (suggest_memory_format) for a tensor of four dimensions: ambiguous strides count as contiguous.
bool is_channels_last(const Tensor& t) {
  if (t.stride(1) == 0) return false;
  int64_t least = 0;
  for (const int64_t d : {1, 3, 2, 0}) {
    if (t.size(d) == 0 || t.stride(d) < least || (d == 0 && least == t.stride(1))) return false;
    least = t.stride(d) * (t.size(d) > 1 ? t.size(d) : 1);
  }
  return true;
}

// Rank of the first tensor, and the second against it.
void check_tensors(const Tensor& first, const char* first_name, const Tensor& second, const char* second_name) {
  STD_TORCH_CHECK(first.dim() == 4, first_name, " must have 4 dimensions, got ", first.dim());
  STD_TORCH_CHECK(second.dim() == 4, second_name, " must have 4 dimensions, got ", second.dim());
  STD_TORCH_CHECK(second.scalar_type() == first.scalar_type(), second_name, " and ", first_name, " must have one dtype");
  STD_TORCH_CHECK(second.device() == first.device(), second_name, " and ", first_name, " must be on one device");
  STD_TORCH_CHECK(first.size(1) >= 1, first_name, " must have at least one channel");
}
void check_weight(const Tensor& weight, int64_t channels) {
  STD_TORCH_CHECK(weight.size(0) == channels && weight.size(1) == 1, "weight must have shape (", channels,
                  ", 1, kh, kw): one filter for each channel");
}

// Sizes and paddings of up to this many elements: what is computed of them then fits int64.
constexpr int64_t kLargest = int64_t{1} << 40;

void check_options(const Options& options) {
  STD_TORCH_CHECK(options.padding.size() == 4, "padding must be (top, bottom, left, right), got ", options.padding.size(),
                  " values");
  for (int64_t pad : options.padding)
    STD_TORCH_CHECK(pad >= -kLargest && pad <= kLargest, "padding must lie between -2^40 and 2^40, got ", pad);
}
void set_options(Problem* p, const Options& options) {
  p->precision = value_of("precision", options.precision, kPrecisions);
  p->algorithm = value_of("algorithm", options.algorithm, kAlgorithms);
}
// Tensors that can be allocated at all: what is computed of their sizes then fits int64, too.
void check_elements(const Problem& p) {
  const auto check = [](const char* what, int64_t a, int64_t b, int64_t c, int64_t d) {
    double elements = 1;
    for (const int64_t size : {a, b, c, d}) elements *= static_cast<double>(std::max<int64_t>(1, size));
    STD_TORCH_CHECK(elements <= static_cast<double>(int64_t{1} << 48), what, " would have more than 2^48 elements: ", a,
                    " x ", b, " x ", c, " x ", d);
  };
  check("an input of these sizes", p.n, p.c, p.h, p.w);
  check("weight of these sizes", p.c, 1, p.kh, p.kw);
  check("the output for this padding", p.n, p.c, p.ho, p.wo);
}
void check_sizes(const Problem& p) {
  STD_TORCH_CHECK(p.kh >= 1 && p.kw >= 1, "weight must have at least one tap, got ", p.kh, " x ", p.kw);
  STD_TORCH_CHECK(p.ho >= 1 && p.wo >= 1, "weight (", p.kh, " x ", p.kw, ") is larger than the padded input, or padding "
                  "larger than the output allows: the result would be ", p.ho, " x ", p.wo);
  check_elements(p);
}

}  // namespace

int variant_number(int64_t variant) {
  STD_TORCH_CHECK(variant >= kPlanned && variant <= std::numeric_limits<int32_t>::max(),
                  "variant must be the number of a variant of the backend, or -1 to have one chosen; got ", variant);
  return static_cast<int>(variant);
}

Problem fwd_problem(const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias, const Options& options,
                    const std::string& activation) {
  const DType dtype = dtype_of(input, "input");
  check_tensors(input, "input", weight, "weight");
  check_options(options);
  check_weight(weight, input.size(1));
  if (bias.has_value()) {
    STD_TORCH_CHECK(bias->dim() == 1 && bias->size(0) == input.size(1), "bias must have shape (", input.size(1), ",)");
    STD_TORCH_CHECK(bias->scalar_type() == input.scalar_type() && bias->device() == input.device(),
                    "bias must have input's dtype and device");
  }
  const auto& pad = options.padding;
  Problem p{input.size(0), input.size(1), input.size(2), input.size(3), weight.size(2), weight.size(3), 0, 0, pad[0],
            pad[2], dtype, is_channels_last(input) || is_channels_last(weight), false,
            value_of("activation", activation, kActivations)};
  p.ho = p.h + pad[0] + pad[1] - p.kh + 1;
  p.wo = p.w + pad[2] + pad[3] - p.kw + 1;
  set_options(&p, options);
  check_sizes(p);
  return p;
}

Problem bwd_input_problem(const Tensor& grad_output, const Tensor& weight, const Options& options) {
  const DType dtype = dtype_of(grad_output, "grad_output");
  check_tensors(grad_output, "grad_output", weight, "weight");
  check_options(options);
  check_weight(weight, grad_output.size(1));
  const auto& pad = options.padding;
  Problem p{grad_output.size(0), grad_output.size(1), grad_output.size(2), grad_output.size(3), weight.size(2),
            weight.size(3), 0, 0, weight.size(2) - 1 - pad[0], weight.size(3) - 1 - pad[2], dtype,
            is_channels_last(grad_output) || is_channels_last(weight), true, Activation::none};
  p.ho = p.h + p.kh - 1 - pad[0] - pad[1];
  p.wo = p.w + p.kw - 1 - pad[2] - pad[3];
  set_options(&p, options);
  check_sizes(p);
  return p;
}

Problem bwd_weight_problem(const Tensor& grad_output, const Tensor& input, const Options& options) {
  const DType dtype = dtype_of(input, "input");
  check_tensors(input, "input", grad_output, "grad_output");
  check_options(options);
  STD_TORCH_CHECK(grad_output.size(0) == input.size(0) && grad_output.size(1) == input.size(1),
                  "grad_output and input must have one batch size and channel count");
  const auto& pad = options.padding;
  Problem p{input.size(0), input.size(1), input.size(2), input.size(3), 0, 0, grad_output.size(2), grad_output.size(3),
            pad[0], pad[2], dtype, is_channels_last(input), false, Activation::none};
  p.kh = p.h + pad[0] + pad[1] - p.ho + 1;
  p.kw = p.w + pad[2] + pad[3] - p.wo + 1;
  p.pass = Pass::bwd_weight;
  set_options(&p, options);
  check_sizes(p);
  return p;
}

Problem problem_of(const std::vector<int64_t>& sizes, const std::string& dtype, bool channels_last,
                   const std::string& pass, const std::string& precision, const std::string& algorithm) {
  STD_TORCH_CHECK(sizes.size() == 10, "sizes must be (n, c, h, w, kh, kw, ho, wo, pad_top, pad_left)");
  for (size_t i = 0; i < 8; i++)
    STD_TORCH_CHECK(sizes[i] >= 0 && sizes[i] <= kLargest, "sizes must lie between 0 and 2^40, got ", sizes[i]);
  for (size_t i = 8; i < 10; i++)
    STD_TORCH_CHECK(sizes[i] >= -kLargest && sizes[i] <= kLargest, "pads must lie between -2^40 and 2^40, got ", sizes[i]);
  const QueryPass which = value_of("pass", pass, kPasses);
  Problem p{sizes[0], sizes[1], sizes[2], sizes[3], sizes[4], sizes[5], sizes[6], sizes[7], sizes[8], sizes[9],
            value_of("dtype", dtype, kDTypes), channels_last, which == QueryPass::bwd_input, Activation::none};
  p.pass = which == QueryPass::bwd_weight ? Pass::bwd_weight : Pass::fwd;
  p.precision = value_of("precision", precision, kPrecisions);
  p.algorithm = value_of("algorithm", algorithm, kAlgorithms);
  check_elements(p);
  return p;
}

Tensor empty_like(const Tensor& like, const std::vector<int64_t>& sizes, MemoryFormat format) {
  try {
    return torch::stable::empty(sizes, like.scalar_type(), std::nullopt, like.device(), std::nullopt, format);
  } catch (const std::exception&) {  // of torch's stable ABI, which does not say why
    std::string text;
    for (const int64_t size : sizes) text += (text.empty() ? "" : " x ") + std::to_string(size);
    throw std::runtime_error("can't allocate memory for a result of " + text + " elements");
  }
}

}  // namespace replknet_ext
