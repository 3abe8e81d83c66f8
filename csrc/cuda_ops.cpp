// The CUDA kernels of the ops: current stream, device guard, memory formats around cuda/. What those kernels do not
// cover goes to torch's convolution through the `_torch_*` ops that replknet_ext.ops defines.
#ifdef REPLKNET_EXT_WITH_CUDA
#include <dlfcn.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/headeronly/util/shim_utils.h>

#include <array>
#include <map>
#include <mutex>
#include <string>

#include "cuda/dwconv2d_cuda.h"
#include "glue.h"

namespace replknet_ext {
namespace {

// The function is in libtorch_cuda.so, which a CPU-only torch does not have: this library must load there too.
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

// Read once a device: the query costs more than a launch.
const cuda::DeviceLimits& limits_of(int32_t device) {
  static std::mutex mutex;
  static std::map<int32_t, cuda::DeviceLimits> known;
  const std::lock_guard<std::mutex> lock(mutex);
  auto found = known.find(device);
  if (found == known.end()) {
    cuda::DeviceLimits limits{};
    const int error = cuda::device_limits(device, &limits);
    STD_TORCH_CHECK(error == 0, "cannot read the limits of CUDA device ", device, ": ", cuda::error_message(error));
    found = known.emplace(device, limits).first;
  }
  return found->second;
}

// The kernels read and write NCHW: channels_last is copied there and back.
Problem as_nchw(Problem p) {
  p.channels_last = false;
  return p;
}

// Whether the kernels run this problem on this device; a named variant that can't is an error, never another one.
bool covered(const Problem& p, int32_t device, int64_t variant) {
  if (p.n == 0) return true;
  const char* why = cuda::supports(as_nchw(p), limits_of(device), static_cast<int>(variant));
  STD_TORCH_CHECK(why == nullptr || variant == -1, "variant ", variant, " can't run this: ", why);
  return why == nullptr;
}

Tensor run_fwd(const Problem& p, const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias,
               int64_t variant) {
  Tensor output = empty_like(input, {p.n, p.c, p.ho, p.wo}, memory_format(p));
  if (p.n == 0) return output;
  const Tensor x = torch::stable::contiguous(input), w = torch::stable::contiguous(weight);
  std::optional<Tensor> b;
  if (bias.has_value()) b = torch::stable::contiguous(*bias);
  Tensor y = p.channels_last ? empty_like(input, {p.n, p.c, p.ho, p.wo}, MemoryFormat::Contiguous) : output;
  const int32_t device = input.get_device_index();
  cuda::Tensors t{x.const_data_ptr(), w.const_data_ptr(), b.has_value() ? b->const_data_ptr() : nullptr};
  t.out = y.mutable_data_ptr();
  const int error =
      cuda::launch(as_nchw(p), t, limits_of(device), static_cast<int>(variant), current_stream(device));
  STD_TORCH_CHECK(error == 0, "CUDA launch failed: ", cuda::error_message(error));
  if (p.channels_last) torch::stable::copy_(output, y);
  return output;
}

template <class... Args>
Tensor call(const char* op, const Args&... args) {
  std::array<StableIValue, sizeof...(Args)> stack{torch::stable::detail::from(args)...};
  TORCH_ERROR_CODE_CHECK(torch_call_dispatcher(op, "", stack.data(), TORCH_ABI_VERSION));
  return torch::stable::detail::to<Tensor>(stack[0]);
}

Tensor dwconv2d(const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias,
                std::vector<int64_t> padding, std::string activation, std::string precision, std::string algorithm,
                int64_t variant) {
  const Problem p = fwd_problem(input, weight, bias, {padding, precision, algorithm}, activation);
  const torch::stable::accelerator::DeviceGuard guard(input.get_device_index());
  if (covered(p, input.get_device_index(), variant)) return run_fwd(p, input, weight, bias, variant);
  return call("replknet_ext::_torch_dwconv2d", input, weight, bias, padding, activation, precision, algorithm, variant);
}

Tensor dwconv2d_backward_input(const Tensor& grad_output, const Tensor& weight, std::vector<int64_t> padding,
                               std::string precision, std::string algorithm, int64_t variant) {
  const Problem p = bwd_input_problem(grad_output, weight, {padding, precision, algorithm});
  const torch::stable::accelerator::DeviceGuard guard(grad_output.get_device_index());
  if (covered(p, grad_output.get_device_index(), variant)) return run_fwd(p, grad_output, weight, std::nullopt, variant);
  return call("replknet_ext::_torch_dwconv2d_backward_input", grad_output, weight, padding, precision, algorithm,
              variant);
}

// JSON: how a launch would go on a device with these limits, or why it can't. Needs no GPU.
std::string cuda_plan(std::vector<int64_t> sizes, std::string dtype, std::vector<int64_t> limits, int64_t variant) {
  STD_TORCH_CHECK(sizes.size() == 10, "sizes must be (n, c, h, w, kh, kw, ho, wo, pad_top, pad_left)");
  STD_TORCH_CHECK(limits.size() == 4, "limits must be (capability, multiprocessors, shared_per_block, shared_per_sm)");
  STD_TORCH_CHECK(dtype == "float16" || dtype == "bfloat16", "dtype must be 'float16' or 'bfloat16', got '", dtype, "'");
  const Problem p{sizes[0], sizes[1], sizes[2], sizes[3], sizes[4], sizes[5], sizes[6], sizes[7], sizes[8], sizes[9],
                  dtype == "bfloat16" ? DType::bf16 : DType::f16, false, false, Activation::none};
  const cuda::DeviceLimits device{static_cast<int>(limits[0]), static_cast<int>(limits[1]), static_cast<int>(limits[2]),
                                  static_cast<int>(limits[3])};
  cuda::LaunchPlan plan{};
  if (const char* why = cuda::plan(p, device, static_cast<int>(variant), &plan))
    return std::string("{\"unsupported\": \"") + why + "\"}";
  return std::string("{\"variant\": ") + std::to_string(plan.variant) + ", \"name\": \"" + plan.name +
         "\", \"warps\": " + std::to_string(plan.warps) + ", \"shared_bytes\": " + std::to_string(plan.shared_bytes) +
         ", \"blocks\": " + std::to_string(plan.blocks) + ", \"blocks_per_sm\": " + std::to_string(plan.blocks_per_sm) +
         ", \"row_groups\": " + std::to_string(plan.row_groups) + ", \"passes\": " + std::to_string(plan.passes) +
         ", \"mmas\": " + std::to_string(plan.mmas) + ", \"cycles\": " + std::to_string(plan.cycles) + "}";
}

}  // namespace
}  // namespace replknet_ext

STABLE_TORCH_LIBRARY_IMPL(replknet_ext, CompositeExplicitAutograd, m) {
  m.impl("_cuda_plan", TORCH_BOX(&replknet_ext::cuda_plan));
}

STABLE_TORCH_LIBRARY_IMPL(replknet_ext, CUDA, m) {
  m.impl("dwconv2d", TORCH_BOX(&replknet_ext::dwconv2d));
  m.impl("dwconv2d_backward_input", TORCH_BOX(&replknet_ext::dwconv2d_backward_input));
}
#endif
