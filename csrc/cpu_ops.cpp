// The CPU kernels of the ops: scratch and threads around cpu/.
#include <algorithm>

#include "cpu/cpu.h"
#include "glue.h"

namespace replknet_ext {
namespace {

void check_choice(const Problem& p, int64_t variant) {
  STD_TORCH_CHECK(variant == -1, "variant must be -1: the CPU kernels have no variants, got ", variant);
  STD_TORCH_CHECK(p.algorithm != Algorithm::fft, "algorithm must be 'auto' or 'direct': there is no FFT on the CPU yet");
}
int thread_count() { return static_cast<int>(torch::stable::get_num_threads()); }

// One contiguous run of units and one piece of scratch for each thread. The scratch is torch's: an allocation that
// fails is a Python exception.
template <class F>
void run_units(const cpu::Plan& plan, const F& f) {
  const int64_t threads = std::min<int64_t>(thread_count(), plan.units);
  const int64_t slice = (plan.scratch + cpu::kAlign - 1) / cpu::kAlign * cpu::kAlign;
  const std::vector<int64_t> bytes{threads * slice + cpu::kAlign};
  Tensor scratch = torch::stable::empty(bytes, ScalarType::Byte);
  const auto address = reinterpret_cast<uintptr_t>(scratch.mutable_data_ptr());
  char* base = reinterpret_cast<char*>((address + cpu::kAlign - 1) / cpu::kAlign * cpu::kAlign);
  torch::stable::parallel_for(0, threads, 1, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; i++)
      f(plan.units * i / threads, plan.units * (i + 1) / threads, base + i * slice);
  });
}

Tensor run_fwd(const Problem& p, const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias) {
  Tensor output = empty_like(input, {p.n, p.c, p.ho, p.wo}, memory_format(p));
  if (p.n == 0) return output;
  const Tensor x = torch::stable::contiguous(input, memory_format(p));
  const Tensor w = torch::stable::contiguous(weight);
  std::optional<Tensor> b;
  if (bias.has_value()) b = torch::stable::contiguous(*bias);
  const cpu::Plan plan = cpu::isa().plan_fwd(p, thread_count());
  run_units(plan, [&, in = x.const_data_ptr(), filter = w.const_data_ptr(),
                   shift = b.has_value() ? b->const_data_ptr() : nullptr,
                   out = output.mutable_data_ptr()](int64_t begin, int64_t end, void* scratch) {
    cpu::isa().fwd(p, plan, in, filter, shift, out, begin, end, scratch);
  });
  return output;
}

Tensor dwconv2d(const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias,
                std::vector<int64_t> padding, std::string activation, std::string precision, std::string algorithm,
                int64_t variant) {
  const Problem p = fwd_problem(input, weight, bias, {padding, precision, algorithm}, activation);
  check_choice(p, variant);
  return run_fwd(p, input, weight, bias);
}

Tensor dwconv2d_backward_input(const Tensor& grad_output, const Tensor& weight, std::vector<int64_t> padding,
                               std::string precision, std::string algorithm, int64_t variant) {
  const Problem p = bwd_input_problem(grad_output, weight, {padding, precision, algorithm});
  check_choice(p, variant);
  return run_fwd(p, grad_output, weight, std::nullopt);
}

Tensor dwconv2d_backward_weight(const Tensor& grad_output, const Tensor& input, std::vector<int64_t> padding,
                                std::string precision, std::string algorithm, int64_t variant) {
  const Problem p = bwd_weight_problem(grad_output, input, {padding, precision, algorithm});
  check_choice(p, variant);
  Tensor grad_weight = empty_like(input, {p.c, 1, p.kh, p.kw}, MemoryFormat::Contiguous);
  if (p.n == 0) return torch::stable::zero_(grad_weight);
  const Tensor x = torch::stable::contiguous(input, memory_format(p));
  const Tensor g = torch::stable::contiguous(grad_output, memory_format(p));
  const cpu::Plan plan = cpu::isa().plan_bwd_weight(p, thread_count());
  run_units(plan, [&, in = x.const_data_ptr(), grad = g.const_data_ptr(),
                   out = grad_weight.mutable_data_ptr()](int64_t begin, int64_t end, void* scratch) {
    cpu::isa().bwd_weight(p, plan, grad, in, out, begin, end, scratch);
  });
  return grad_weight;
}

}  // namespace
}  // namespace replknet_ext

STABLE_TORCH_LIBRARY_IMPL(replknet_ext, CPU, m) {
  m.impl("dwconv2d", TORCH_BOX(&replknet_ext::dwconv2d));
  m.impl("dwconv2d_backward_input", TORCH_BOX(&replknet_ext::dwconv2d_backward_input));
  m.impl("dwconv2d_backward_weight", TORCH_BOX(&replknet_ext::dwconv2d_backward_weight));
}
