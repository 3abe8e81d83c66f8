// The operator schemas, in this one place, and what the binary says of itself. The kernels are in bindings/cpu_ops.cpp and
// bindings/cuda_ops.cpp. LibTorch stable ABI only, so that one binary serves every torch from TORCH_TARGET_VERSION on.
#include <Python.h>

#include <torch/csrc/stable/library.h>

#include <string>

#include "../cpu/backend.h"
#include "../cuda/backend.h"
#include "../cuda/model.h"
#ifdef REPLKNET_EXT_WITH_CUDA
#define REPLKNET_EXT_CUDA_OPS \
  "\"dwconv2d\", \"dwconv2d_backward_input\", \"dwconv2d_backward_weight\", \"dwconv2d_backward_weight_bias\""
#else
#define REPLKNET_EXT_CUDA_OPS ""
#endif

// From setup.py's flags.
#ifndef REPLKNET_EXT_CUDA_ARCHS
#define REPLKNET_EXT_CUDA_ARCHS ""
#define REPLKNET_EXT_CUDA_TOOLKIT ""
#endif

namespace replknet_ext {
namespace {

std::string cpu_isa() { return cpu::isa().name; }

template <class NameOf>
std::string variant_list(int count, const NameOf& name_of) {
  std::string out;
  for (int i = 0; i < count; i++) out += (i ? ", \"" : "\"") + std::string(name_of(i)) + "\"";
  return "[" + out + "]";
}
// The lists of both passes by f(pass).
template <class ListOf>
std::string variant_lists(const ListOf& f) {
  return "{\"fwd\": " + f(Pass::fwd) + ", \"bwd_weight\": " + f(Pass::bwd_weight) + "}";
}

// JSON: what this binary holds. Read by replknet_ext._ext. A variant's number is its place in its pass's list; bwd_input
// has those of fwd. The CUDA kernels' variants are listed in every build, as the planners are in it.
std::string build_info() {
  const std::string cpu_variants = variant_lists([](Pass pass) {
    return variant_list(cpu::variant_count(pass), [&](int i) { return cpu::variant(pass, i).name; });
  });
  const std::string cuda_variants = variant_lists([](Pass pass) {
    return variant_list(cuda::variant_count(pass), [&](int i) { return cuda::variant_name(pass, i); });
  });
  return std::string("{\"torch_target\": \"2.11\", \"compiler\": \"") + __VERSION__ + "\", \"cuda_toolkit\": \"" +
         REPLKNET_EXT_CUDA_TOOLKIT + "\", \"cuda_archs\": \"" + REPLKNET_EXT_CUDA_ARCHS + "\", \"cuda_ops\": [" +
         REPLKNET_EXT_CUDA_OPS + "], \"model_clock_mhz\": " + std::to_string(cuda::kClockMHz) + ", \"cpu_variants\": " + cpu_variants + ", \"cuda_variants\": " + cuda_variants + "}";
}

// JSON: the GPUs that the CUDA runtime in this binary sees, with what decides which kernels they can run.
std::string cuda_devices() {
  std::string out = "[";
#ifdef REPLKNET_EXT_WITH_CUDA
  cuda::DeviceLimits l{};
  for (int i = 0; cuda::device_limits(i, &l) == 0; i++)
    out += (i ? ", " : "") + std::string("{\"capability\": ") + std::to_string(l.capability) +
           ", \"multiprocessors\": " + std::to_string(l.sms) + ", \"shared_per_block\": " +
           std::to_string(l.shared_per_block) + ", \"shared_per_sm\": " + std::to_string(l.shared_per_sm) + "}";
#endif
  return out + "]";
}

}  // namespace
}  // namespace replknet_ext

// `name` is one of the four ops, by the kernels of the tensors' device; "_python_" + name the same op by a backend that is written
// in Python, where the device's own kernels are not to run it or can't. replknet_ext.operator.ops registers those.
#define REPLKNET_EXT_DEF(name, schema) \
  m.def(name schema);                  \
  m.def("_python_" name schema)
#define REPLKNET_EXT_REST "int[4] padding, str precision, str algorithm, str backend, int variant) -> "

STABLE_TORCH_LIBRARY(replknet_ext, m) {
  REPLKNET_EXT_DEF("dwconv2d",
                   "(Tensor input, Tensor weight, Tensor? bias, int[4] padding, str activation, str precision, "
                   "str algorithm, str backend, int variant) -> Tensor");
  REPLKNET_EXT_DEF("dwconv2d_backward_input", "(Tensor grad_output, Tensor weight, " REPLKNET_EXT_REST "Tensor");
  REPLKNET_EXT_DEF("dwconv2d_backward_weight", "(Tensor grad_output, Tensor input, " REPLKNET_EXT_REST "Tensor");
  REPLKNET_EXT_DEF("dwconv2d_backward_weight_bias",
                   "(Tensor grad_output, Tensor input, " REPLKNET_EXT_REST "(Tensor, Tensor)");
  // Asked for a measured choice (choices.h): backend, blank, number of its variant; replknet_ext.choices.query answers.
  m.def(
      "_choice(str pass_, Tensor first, Tensor second, Tensor? bias, int[4] padding, str activation, str precision, "
      "str algorithm, str backend) -> str");
  m.def("_failure() -> str");  // what the last op of this thread that is written in Python died of
  m.def("_forget_choices() -> ()");
  m.def("_cpu_isa() -> str");
  m.def("_build_info() -> str");
  m.def(
      "_cpu_plan(int[] sizes, str dtype, bool channels_last, str pass_, str algorithm, int threads, int variant) -> str");
  m.def("_cuda_devices() -> str");
  m.def(
      "_cuda_plan(int[] sizes, str dtype, bool channels_last, str pass_, str precision, str algorithm, int[] limits, "
      "int variant) -> str");
  m.def(
      "_cuda_plan_cost(int[] sizes, str dtype, bool channels_last, str passes, str precision, str algorithm, "
      "int[] limits) -> str");
}

STABLE_TORCH_LIBRARY_IMPL(replknet_ext, CompositeExplicitAutograd, m) {
  m.impl("_cpu_isa", TORCH_BOX(&replknet_ext::cpu_isa));
  m.impl("_build_info", TORCH_BOX(&replknet_ext::build_info));
  m.impl("_cuda_devices", TORCH_BOX(&replknet_ext::cuda_devices));
}

// Importing the module is what loads the library; it holds no Python functions.
PyMODINIT_FUNC PyInit__C(void) {
  static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "_C", nullptr, -1, nullptr, nullptr, nullptr, nullptr,
                                      nullptr};
  return PyModule_Create(&module);
}
