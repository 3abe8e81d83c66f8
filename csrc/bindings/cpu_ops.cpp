// The CPU kernels of the ops: scratch and threads around cpu/.
#include <algorithm>

#include "choices.h"
#include "../cpu/backend.h"
#include "arguments.h"

namespace replknet_ext {
namespace {

constexpr const char* kOwn = "cpu";

int thread_count() { return static_cast<int>(torch::stable::get_num_threads()); }

// A named variant or an FFT that can't run the problem is an error, never something else in its place.
cpu::Choice choose(const Problem& p, int64_t variant) {
  cpu::Choice choice;
  const char* why = cpu::choose(p, thread_count(), variant_number(variant), &choice);
  if (why != nullptr) {
    STD_TORCH_CHECK(variant == kPlanned, "variant ", variant, " can't run this: ", why);
    STD_TORCH_CHECK(false, "algorithm '", p.algorithm == Algorithm::fft ? "fft" : "direct", "' can't run this: ", why);
  }
  return choice;
}

Choice chosen(const Problem& p, const Call& call) { return chosen(p, call, kOwn, -1, thread_count()); }

Tensor scratch_of(int64_t bytes) { return torch::stable::empty(std::vector<int64_t>{bytes}, ScalarType::Byte); }
char* aligned(const Tensor& scratch) {
  const auto address = reinterpret_cast<uintptr_t>(scratch.mutable_data_ptr());
  return reinterpret_cast<char*>((address + cpu::kAlign - 1) / cpu::kAlign * cpu::kAlign);
}

// One contiguous run of units and one piece of scratch for each thread. The scratch is torch's: an allocation that
// fails is a Python exception.
void run(const Problem& p, const cpu::Choice& choice, cpu::Tensors t) {
  const cpu::Plan& plan = choice.plan;
  const cpu::Kernel& kernel = cpu::variant(p.pass, choice.variant);
  const int64_t threads = std::min<int64_t>(thread_count(), std::max(plan.units, plan.finish_units));
  const int64_t slice = (plan.scratch + cpu::kAlign - 1) / cpu::kAlign * cpu::kAlign;
  const int64_t shared = (plan.shared + cpu::kAlign - 1) / cpu::kAlign * cpu::kAlign;
  const Tensor scratch = scratch_of(shared + threads * slice + cpu::kAlign);
  char* base = aligned(scratch);
  t.shared = base;
  for (int phase = 0; phase < 2; phase++) {
    const int64_t units = phase == 0 ? plan.units : plan.finish_units, runs = std::min(threads, units);
    torch::stable::parallel_for(0, runs, 1, [&](int64_t first, int64_t last) {
      for (int64_t i = first; i < last; i++)
        kernel.run(p, plan, t, phase, units * i / runs, units * (i + 1) / runs, base + shared + i * slice);
    });
  }
}

Tensor run_fwd(const Problem& p, int64_t variant, const Tensor& input, const Tensor& weight,
               const std::optional<Tensor>& bias) {
  Tensor output = empty_like(input, {p.n, p.c, p.ho, p.wo}, memory_format(p));  // first: what can't be had needs no plan
  const cpu::Choice choice = choose(p, variant);
  if (p.n == 0) return output;
  const Tensor x = torch::stable::contiguous(input, memory_format(p));
  const Tensor w = torch::stable::contiguous(weight);
  std::optional<Tensor> b;
  if (bias.has_value()) b = torch::stable::contiguous(*bias);
  cpu::Tensors t{x.const_data_ptr(), w.const_data_ptr(), b.has_value() ? b->const_data_ptr() : nullptr};
  t.out = output.mutable_data_ptr();
  run(p, choice, t);
  return output;
}

Tensor dwconv2d(const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias,
                std::vector<int64_t> padding, Text activation, Text precision, Text algorithm, Text backend,
                int64_t variant) {
  const Options options{padding, precision, algorithm, backend, variant};
  const Problem p = fwd_problem(input, weight, bias, options, activation);
  const Choice choice = chosen(p, {"fwd", input, weight, bias, options, activation});
  if (is_own(choice, kOwn)) return run_fwd(p, choice.variant, input, weight, bias);
  return by_python<Tensor>("dwconv2d", choice, input, weight, bias, padding, activation, precision, algorithm);
}

Tensor dwconv2d_backward_input(const Tensor& grad_output, const Tensor& weight, std::vector<int64_t> padding,
                               Text precision, Text algorithm, Text backend, int64_t variant) {
  const Options options{padding, precision, algorithm, backend, variant};
  const Problem p = bwd_input_problem(grad_output, weight, options);
  const Choice choice = chosen(p, {"bwd_input", grad_output, weight, std::nullopt, options, "none"});
  if (is_own(choice, kOwn)) return run_fwd(p, choice.variant, grad_output, weight, std::nullopt);
  return by_python<Tensor>("dwconv2d_backward_input", choice, grad_output, weight, padding, precision, algorithm);
}

Tensor dwconv2d_backward_weight(const Tensor& grad_output, const Tensor& input, std::vector<int64_t> padding,
                                Text precision, Text algorithm, Text backend, int64_t variant) {
  const Options options{padding, precision, algorithm, backend, variant};
  const Problem p = bwd_weight_problem(grad_output, input, options);
  const Choice chose = chosen(p, {"bwd_weight", grad_output, input, std::nullopt, options, "none"});
  if (!is_own(chose, kOwn))
    return by_python<Tensor>("dwconv2d_backward_weight", chose, grad_output, input, padding, precision, algorithm);
  Tensor grad_weight = empty_like(input, {p.c, 1, p.kh, p.kw}, MemoryFormat::Contiguous);
  const cpu::Choice choice = choose(p, chose.variant);
  if (p.n == 0) return torch::stable::zero_(grad_weight);
  const Tensor x = torch::stable::contiguous(input, memory_format(p));
  const Tensor g = torch::stable::contiguous(grad_output, memory_format(p));
  cpu::Tensors t{x.const_data_ptr()};
  t.grad = g.const_data_ptr();
  t.out = grad_weight.mutable_data_ptr();
  run(p, choice, t);
  return grad_weight;
}

// JSON: which kernel would run a problem, how, and in how much time by the model; or why none can.
std::string cpu_plan(std::vector<int64_t> sizes, std::string dtype, bool channels_last, std::string pass,
                     std::string algorithm, int64_t threads, int64_t variant) {
  STD_TORCH_CHECK(threads >= 1 && threads <= 1 << 16, "threads must be between 1 and 65536, got ", threads);
  const Problem p = problem_of(sizes, dtype, channels_last, pass, "ieee", algorithm);
  STD_TORCH_CHECK(p.n >= 0 && p.c >= 1 && p.h >= 1 && p.w >= 1 && p.kh >= 1 && p.kw >= 1 && p.ho >= 1 && p.wo >= 1,
                  "sizes must be positive");
  cpu::Choice choice;
  if (const char* why = cpu::choose(p, static_cast<int>(threads), variant_number(variant), &choice))
    return std::string("{\"unsupported\": \"") + why + "\"}";
  const cpu::Kernel& kernel = cpu::variant(p.pass, choice.variant);
  const cpu::Plan& plan = choice.plan;
  return std::string("{\"variant\": ") + std::to_string(choice.variant) + ", \"name\": \"" + kernel.name +
         "\", \"family\": \"" + cpu::family(kernel) + "\", \"microseconds\": " + std::to_string(plan.cost) +
         ", \"units\": " + std::to_string(plan.units) + ", \"finish_units\": " + std::to_string(plan.finish_units) +
         ", \"scratch_bytes\": " + std::to_string(plan.scratch) +
         ", \"shared_bytes\": " + std::to_string(plan.shared) + "}";
}

}  // namespace
}  // namespace replknet_ext

STABLE_TORCH_LIBRARY_IMPL(replknet_ext, CompositeExplicitAutograd, m) {
  m.impl("_cpu_plan", TORCH_BOX(&replknet_ext::cpu_plan));
}

STABLE_TORCH_LIBRARY_IMPL(replknet_ext, CPU, m) {
  m.impl("dwconv2d", TORCH_BOX(&replknet_ext::dwconv2d));
  m.impl("dwconv2d_backward_input", TORCH_BOX(&replknet_ext::dwconv2d_backward_input));
  m.impl("dwconv2d_backward_weight", TORCH_BOX(&replknet_ext::dwconv2d_backward_weight));
}
