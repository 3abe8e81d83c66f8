// The CUDA kernels of the ops: current stream, device guard, workspace around cuda/. What those kernels do not cover goes
// to a backend that is written in Python.
#ifdef REPLKNET_EXT_WITH_CUDA
#include <dlfcn.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/headeronly/util/shim_utils.h>

#include <map>
#include <mutex>
#include <string>
#include <tuple>

#include "choices.h"
#include "../cuda/backend.h"

namespace replknet_ext {
namespace {

constexpr const char* kOwn = "cuda";

// The function is in libtorch_cuda.so, which a CPU-only torch does not have: this library must load there too. dlopen and
// that name are Linux's; CUDA kernels are built nowhere else (setup.py).
void* current_stream(int32_t device) {
  using Get = AOTITorchError (*)(int32_t, void**);
  static const Get get = [] {
    void* library = dlopen("libtorch_cuda.so", RTLD_LAZY | RTLD_NOLOAD);
    return library == nullptr ? nullptr : reinterpret_cast<Get>(dlsym(library, "aoti_torch_get_current_cuda_stream"));
  }();
  STD_TORCH_CHECK(get != nullptr, "this torch was built without CUDA");
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(get(device, &stream));
  return stream;
}

// Read once per device, which is the current one: the query costs more than a launch.
cuda::DeviceLimits limits_of(int32_t device) {
  static std::mutex mutex;
  static std::map<int32_t, cuda::DeviceLimits> known;
  const std::lock_guard<std::mutex> lock(mutex);
  auto found = known.find(device);
  if (found == known.end()) {
    cuda::DeviceLimits limits{};
    if (!cuda::usable_limits(device, &limits)) return limits;
    found = known.emplace(device, limits).first;
  }
  return found->second;
}

// How the kernels run a problem on a device: in its own memory format, or in NCHW with copies around it. `covered` false:
// not at all. An empty batch is covered, and has no plan.
struct Route : cuda::Route {
  bool covered;
};

// A backend or variant by name that can't run the problem, and an FFT that can't, are errors, never something else in its
// place.
Route route(const Problem& p, int32_t device, const Choice& choice) {
  Route r{{nullptr, false, 0}, p.n == 0};
  if (p.n == 0 || !is_own(choice, kOwn)) return r;
  const int variant = variant_number(choice.variant);
  const char* why = cuda::plan_route(p, limits_of(device), variant, &r);
  r.covered = why == nullptr;
  STD_TORCH_CHECK(r.covered || variant == kPlanned, "variant ", variant, " can't run this: ", why);
  STD_TORCH_CHECK(r.covered || p.algorithm != Algorithm::fft, "algorithm 'fft' can't run this: ", why);
  STD_TORCH_CHECK(r.covered || choice.backend == "auto", "backend 'cuda' can't run this: ", why);
  return r;
}

void launch(const cuda::LaunchPlan& plan, const Tensor& like, cuda::Tensors t) {
  const int32_t device = like.get_device_index();
  std::optional<Tensor> workspace;
  if (plan.workspace_bytes > 0) {
    const std::vector<int64_t> bytes{plan.workspace_bytes};
    workspace = torch::stable::empty(bytes, ScalarType::Byte, std::nullopt, like.device());
    t.workspace = workspace->mutable_data_ptr();
  }
  const int error = cuda::launch(plan, t, current_stream(device));
  STD_TORCH_CHECK(error == 0, "CUDA launch failed: ", cuda::error_message(error));
}

// Whether a tensor of four dimensions is dense in a memory format.
bool is_dense(const Tensor& t, MemoryFormat format) {
  const bool last = format == MemoryFormat::ChannelsLast;
  int64_t step = 1;
  for (const int d : {last ? 1 : 3, last ? 3 : 2, last ? 2 : 1, 0}) {
    if (t.size(d) != 1 && t.stride(d) != step) return false;
    step *= t.size(d);
  }
  return true;
}

// Between tensors of the same size, dense in the two memory formats; `last`: the source is channels_last.
void transpose(const Tensor& from, Tensor& to, bool last) {
  const int64_t pixels = from.size(2) * from.size(3), channels = from.size(1);
  const int error = cuda::transpose(from.const_data_ptr(), to.mutable_data_ptr(), from.size(0), last ? pixels : channels,
                                    last ? channels : pixels, static_cast<int>(from.element_size()),
                                    current_stream(from.get_device_index()));
  STD_TORCH_CHECK(error == 0, "CUDA launch failed: ", cuda::error_message(error));
}

// The tensor, or a copy of it, dense in a memory format. torch copies what is dense in neither.
Tensor in_format(const Tensor& t, MemoryFormat format) {
  const bool to_last = format == MemoryFormat::ChannelsLast;
  const bool turned = is_dense(t, to_last ? MemoryFormat::Contiguous : MemoryFormat::ChannelsLast);
  if (is_dense(t, format) || !turned) return torch::stable::contiguous(t, format);
  Tensor copy = empty_like(t, {t.size(0), t.size(1), t.size(2), t.size(3)}, format);
  transpose(t, copy, !to_last);
  return copy;
}

Tensor run_fwd(const Problem& p, const Route& r, const Tensor& input, const Tensor& weight,
               const std::optional<Tensor>& bias) {
  Tensor output = empty_like(input, {p.n, p.c, p.ho, p.wo}, memory_format(p));
  if (p.n == 0) return output;
  const auto format = memory_format(r.plan->problem);
  const Tensor x = in_format(input, format), w = torch::stable::contiguous(weight);
  std::optional<Tensor> b;
  if (bias.has_value()) b = torch::stable::contiguous(*bias);
  Tensor y = r.copied ? empty_like(input, {p.n, p.c, p.ho, p.wo}, format) : output;
  cuda::Tensors t{x.const_data_ptr(), w.const_data_ptr(), b.has_value() ? b->const_data_ptr() : nullptr};
  t.out = y.mutable_data_ptr();
  launch(*r.plan, input, t);
  if (r.copied) transpose(y, output, false);
  return output;
}

std::tuple<Tensor, Tensor> run_bwd_weight(const Problem& p, const Route& r, const Tensor& grad_output,
                                          const Tensor& input, bool with_bias) {
  Tensor grad_weight = empty_like(input, {p.c, 1, p.kh, p.kw}, MemoryFormat::Contiguous);
  Tensor grad_bias = with_bias ? empty_like(input, {p.c}, MemoryFormat::Contiguous) : grad_weight;
  if (p.n == 0) return {torch::stable::zero_(grad_weight), torch::stable::zero_(grad_bias)};
  const auto format = memory_format(r.plan->problem);
  const Tensor x = in_format(input, format), g = in_format(grad_output, format);
  cuda::Tensors t{x.const_data_ptr()};
  t.grad = g.const_data_ptr();
  t.out = grad_weight.mutable_data_ptr();
  if (with_bias) t.grad_bias = grad_bias.mutable_data_ptr();
  launch(*r.plan, input, t);
  return {grad_weight, grad_bias};
}

Choice chosen(const Problem& p, const Call& call) { return chosen(p, call, kOwn, call.first.get_device_index(), 0); }

Tensor dwconv2d(const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias,
                std::vector<int64_t> padding, Text activation, Text precision, Text algorithm, Text backend,
                int64_t variant) {
  const Options options{padding, precision, algorithm, backend, variant};
  const Problem p = fwd_problem(input, weight, bias, options, activation);
  const torch::stable::accelerator::DeviceGuard guard(input.get_device_index());
  const Choice choice = chosen(p, {"fwd", input, weight, bias, options, activation});
  if (const Route r = route(p, input.get_device_index(), choice); r.covered) return run_fwd(p, r, input, weight, bias);
  return by_python<Tensor>("dwconv2d", choice, input, weight, bias, padding, activation, precision, algorithm);
}

Tensor dwconv2d_backward_input(const Tensor& grad_output, const Tensor& weight, std::vector<int64_t> padding,
                               Text precision, Text algorithm, Text backend, int64_t variant) {
  const Options options{padding, precision, algorithm, backend, variant};
  const Problem p = bwd_input_problem(grad_output, weight, options);
  const torch::stable::accelerator::DeviceGuard guard(grad_output.get_device_index());
  const Choice choice = chosen(p, {"bwd_input", grad_output, weight, std::nullopt, options, "none"});
  if (const Route r = route(p, grad_output.get_device_index(), choice); r.covered)
    return run_fwd(p, r, grad_output, weight, std::nullopt);
  return by_python<Tensor>("dwconv2d_backward_input", choice, grad_output, weight, padding, precision, algorithm);
}

Tensor dwconv2d_backward_weight(const Tensor& grad_output, const Tensor& input, std::vector<int64_t> padding,
                                Text precision, Text algorithm, Text backend, int64_t variant) {
  const Options options{padding, precision, algorithm, backend, variant};
  const Problem p = bwd_weight_problem(grad_output, input, options);
  const torch::stable::accelerator::DeviceGuard guard(input.get_device_index());
  const Choice choice = chosen(p, {"bwd_weight", grad_output, input, std::nullopt, options, "none"});
  if (const Route r = route(p, input.get_device_index(), choice); r.covered)
    return std::get<0>(run_bwd_weight(p, r, grad_output, input, false));
  return by_python<Tensor>("dwconv2d_backward_weight", choice, grad_output, input, padding, precision, algorithm);
}

std::tuple<Tensor, Tensor> dwconv2d_backward_weight_bias(const Tensor& grad_output, const Tensor& input,
                                                         std::vector<int64_t> padding, Text precision, Text algorithm,
                                                         Text backend, int64_t variant) {
  const Options options{padding, precision, algorithm, backend, variant};
  const Problem p = bwd_weight_problem(grad_output, input, options);
  const torch::stable::accelerator::DeviceGuard guard(input.get_device_index());
  const Choice choice = chosen(p, {"bwd_weight_bias", grad_output, input, std::nullopt, options, "none"});
  if (const Route r = route(p, input.get_device_index(), choice); r.covered)
    return run_bwd_weight(p, r, grad_output, input, true);
  return by_python<std::tuple<Tensor, Tensor>>("dwconv2d_backward_weight_bias", choice, grad_output, input, padding,
                                               precision, algorithm);
}

}  // namespace
}  // namespace replknet_ext

STABLE_TORCH_LIBRARY_IMPL(replknet_ext, CUDA, m) {
  m.impl("dwconv2d", TORCH_BOX(&replknet_ext::dwconv2d));
  m.impl("dwconv2d_backward_input", TORCH_BOX(&replknet_ext::dwconv2d_backward_input));
  m.impl("dwconv2d_backward_weight", TORCH_BOX(&replknet_ext::dwconv2d_backward_weight));
  m.impl("dwconv2d_backward_weight_bias", TORCH_BOX(&replknet_ext::dwconv2d_backward_weight_bias));
}
#endif
