// The ops by torch's own convolution, for programs without Python: nobody else is there to run what the device's compiled
// kernels do not cover. Where replknet_ext is imported, its backends take these ops' places (replknet_ext.operator.ops).
#include <algorithm>
#include <tuple>

#include "arguments.h"
#include "choices.h"

namespace replknet_ext {
namespace {

void require_torch(const char* op, const Text& algorithm, const Text& backend) {
  STD_TORCH_CHECK(backend == "auto" || backend == "torch", op, ": backend '", std::string(backend),
                  "' is written in Python, which this program does not have; 'torch' runs without it");
  STD_TORCH_CHECK(algorithm != "fft", op, ": torch's convolution has no FFT to ask for");
}

// Pads may be negative, which crops. Pads first: a crop may take more than the plane has.
Tensor padded(const Tensor& x, const std::vector<int64_t>& padding) {
  const int64_t top = padding[0], bottom = padding[1], left = padding[2], right = padding[3], zero = 0;
  const std::vector<int64_t> grow{std::max(left, zero), std::max(right, zero), std::max(top, zero), std::max(bottom, zero)};
  const std::vector<int64_t> crop{std::min(left, zero), std::min(right, zero), std::min(top, zero), std::min(bottom, zero)};
  return torch::stable::pad(torch::stable::pad(x, grow), crop);
}

Tensor conv(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias) {
  const std::vector<int64_t> ones{1, 1}, zeros{0, 0};
  return std::get<0>(call_op<Tensor>("aten::conv2d", x, weight, bias, ones, zeros, ones, weight.size(0)));
}

// In the memory format that the kernels give.
Tensor like(const Tensor& out, const Tensor& source, const Problem& p) {
  Tensor result = empty_like(source, {p.n, p.c, p.ho, p.wo}, memory_format(p));
  return torch::stable::copy_(result, out);
}

Tensor dwconv2d(const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias,
                std::vector<int64_t> padding, Text activation, Text precision, Text algorithm, Text backend,
                int64_t variant) {
  require_torch("dwconv2d", algorithm, backend);
  const Problem p = fwd_problem(input, weight, bias, {padding, precision, algorithm, backend, variant}, activation);
  Tensor out = conv(padded(input, padding), weight, bias);
  if (p.activation == Activation::relu) out = std::get<0>(call_op<Tensor>("aten::relu", out));
  if (p.activation == Activation::gelu) out = std::get<0>(call_op<Tensor>("aten::gelu", out, Text("none")));
  return like(out, input, p);
}

// The convolution of the gradient with the rotated filter and mirrored pads.
Tensor dwconv2d_backward_input(const Tensor& grad_output, const Tensor& weight, std::vector<int64_t> padding,
                               Text precision, Text algorithm, Text backend, int64_t variant) {
  require_torch("dwconv2d_backward_input", algorithm, backend);
  const Problem p = bwd_input_problem(grad_output, weight, {padding, precision, algorithm, backend, variant});
  const int64_t kh = weight.size(2) - 1, kw = weight.size(3) - 1;
  const std::vector<int64_t> mirrored{kh - padding[0], kh - padding[1], kw - padding[2], kw - padding[3]}, axes{2, 3};
  const Tensor rotated = std::get<0>(call_op<Tensor>("aten::flip", weight, axes));
  return like(conv(padded(grad_output, mirrored), rotated, std::nullopt), grad_output, p);
}

// Every plane of the gradient is the filter of its own plane of the input; then the sum over images.
Tensor dwconv2d_backward_weight(const Tensor& grad_output, const Tensor& input, std::vector<int64_t> padding,
                                Text precision, Text algorithm, Text backend, int64_t variant) {
  require_torch("dwconv2d_backward_weight", algorithm, backend);
  const Problem p = bwd_weight_problem(grad_output, input, {padding, precision, algorithm, backend, variant});
  const Tensor x = padded(input, padding);
  Tensor result = empty_like(input, {p.c, 1, p.kh, p.kw}, MemoryFormat::Contiguous);
  if (p.n == 0) return torch::stable::zero_(result);
  const Tensor planes = torch::stable::reshape(x, std::vector<int64_t>{1, p.n * p.c, x.size(2), x.size(3)});
  const Tensor filters = torch::stable::reshape(grad_output, std::vector<int64_t>{p.n * p.c, 1, p.ho, p.wo});
  const Tensor sums = torch::stable::reshape(conv(planes, filters, std::nullopt), std::vector<int64_t>{p.n, p.c, p.kh, p.kw});
  const std::vector<int64_t> images{0};
  return torch::stable::copy_(result, torch::stable::unsqueeze(torch::stable::sum(sums, images), 1));
}

std::tuple<Tensor, Tensor> dwconv2d_backward_weight_bias(const Tensor& grad_output, const Tensor& input,
                                                         std::vector<int64_t> padding, Text precision, Text algorithm,
                                                         Text backend, int64_t variant) {
  const std::vector<int64_t> all_but_channels{0, 2, 3};
  return {dwconv2d_backward_weight(grad_output, input, padding, precision, algorithm, backend, variant),
          torch::stable::sum(grad_output, all_but_channels)};
}

}  // namespace
}  // namespace replknet_ext

STABLE_TORCH_LIBRARY_IMPL(replknet_ext, CompositeExplicitAutograd, m) {
  m.impl("_python_dwconv2d", TORCH_BOX(&replknet_ext::dwconv2d));
  m.impl("_python_dwconv2d_backward_input", TORCH_BOX(&replknet_ext::dwconv2d_backward_input));
  m.impl("_python_dwconv2d_backward_weight", TORCH_BOX(&replknet_ext::dwconv2d_backward_weight));
  m.impl("_python_dwconv2d_backward_weight_bias", TORCH_BOX(&replknet_ext::dwconv2d_backward_weight_bias));
}
