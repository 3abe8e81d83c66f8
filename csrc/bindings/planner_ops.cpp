// The CUDA planners as an op. They are plain C++ and in every build: predictions need neither a GPU nor the kernels.
#include <string>

#include "../cuda/backend.h"
#include "arguments.h"

namespace replknet_ext {
namespace {

// JSON: how a launch would go on a device with these limits, or why it can't. Needs no GPU.
std::string cuda_plan(std::vector<int64_t> sizes, std::string dtype, bool channels_last, std::string pass,
                      std::string precision, std::string algorithm, std::vector<int64_t> limits, int64_t variant) {
  STD_TORCH_CHECK(limits.size() == 4, "limits must be (capability, multiprocessors, shared_per_block, shared_per_sm)");
  const Problem p = problem_of(sizes, dtype, channels_last, pass, precision, algorithm);
  const cuda::DeviceLimits device{static_cast<int>(limits[0]), static_cast<int>(limits[1]), static_cast<int>(limits[2]),
                                  static_cast<int>(limits[3])};
  cuda::Route route;
  if (const char* why = cuda::plan_route(p, device, static_cast<int>(variant), &route))
    return std::string("{\"unsupported\": \"") + why + "\"}";
  const cuda::LaunchPlan& plan = *route.plan;
  std::string details;
  for (const cuda::PlanDetail& detail : plan.details)
    if (detail.name)
      details += (details.empty() ? "\"" : ", \"") + std::string(detail.name) + "\": " + std::to_string(detail.value);
  return std::string("{\"variant\": ") + std::to_string(plan.variant) + ", \"name\": \"" + plan.name +
         "\", \"family\": \"" + plan.family + "\", \"warps\": " + std::to_string(plan.warps) +
         ", \"shared_bytes\": " + std::to_string(plan.shared_bytes) + ", \"blocks\": " + std::to_string(plan.blocks) +
         ", \"blocks_per_sm\": " + std::to_string(plan.blocks_per_sm) +
         ", \"parts\": " + std::to_string(plan.parts) + ", \"details\": {" + details + "}" +
         ", \"workspace_bytes\": " + std::to_string(plan.workspace_bytes) +
         ", \"copied\": " + (route.copied ? "true" : "false") +
         ", \"mmas\": " + std::to_string(plan.mmas) + ", \"cycles\": " + std::to_string(route.cycles) + "}";
}

}  // namespace
}  // namespace replknet_ext

STABLE_TORCH_LIBRARY_IMPL(replknet_ext, CompositeExplicitAutograd, m) {
  m.impl("_cuda_plan", TORCH_BOX(&replknet_ext::cuda_plan));
}
