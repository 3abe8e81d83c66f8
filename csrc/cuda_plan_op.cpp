// The CUDA planners as an op. They are plain C++ and in every build: predictions need neither a GPU nor the kernels.
#include <string>

#include "cuda/dwconv2d_cuda.h"
#include "glue.h"

namespace replknet_ext {
namespace {

// JSON: how a launch would go on a device with these limits, or why it can't. Needs no GPU.
std::string cuda_plan(std::vector<int64_t> sizes, std::string dtype, bool channels_last, std::string pass,
                      std::string precision, std::string algorithm, std::vector<int64_t> limits, int64_t variant) {
  STD_TORCH_CHECK(limits.size() == 4, "limits must be (capability, multiprocessors, shared_per_block, shared_per_sm)");
  Problem p = problem_of(sizes, dtype, channels_last, pass, precision, algorithm);
  const cuda::DeviceLimits device{static_cast<int>(limits[0]), static_cast<int>(limits[1]), static_cast<int>(limits[2]),
                                  static_cast<int>(limits[3])};
  cuda::LaunchPlan plan{};
  const bool last = p.channels_last;
  if (const char* why = cuda::plan_route(&p, device, static_cast<int>(variant), &plan))
    return std::string("{\"unsupported\": \"") + why + "\"}";
  return std::string("{\"variant\": ") + std::to_string(plan.variant) + ", \"name\": \"" + plan.name +
         "\", \"family\": \"" + plan.family + "\", \"warps\": " + std::to_string(plan.warps) +
         ", \"shared_bytes\": " + std::to_string(plan.shared_bytes) + ", \"blocks\": " + std::to_string(plan.blocks) +
         ", \"blocks_per_sm\": " + std::to_string(plan.blocks_per_sm) +
         ", \"row_groups\": " + std::to_string(plan.row_groups) + ", \"passes\": " + std::to_string(plan.passes) +
         ", \"workspace_bytes\": " + std::to_string(plan.workspace_bytes) +
         ", \"copied\": " + (p.channels_last == last ? "false" : "true") +
         ", \"mmas\": " + std::to_string(plan.mmas) + ", \"cycles\": " + std::to_string(plan.cycles) + "}";
}

}  // namespace
}  // namespace replknet_ext

STABLE_TORCH_LIBRARY_IMPL(replknet_ext, CompositeExplicitAutograd, m) {
  m.impl("_cuda_plan", TORCH_BOX(&replknet_ext::cuda_plan));
}
