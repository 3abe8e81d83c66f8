// The CUDA planners as ops. They are plain C++ and in every build: predictions need neither a GPU nor the kernels.
#include <chrono>
#include <iterator>
#include <sstream>
#include <string>

#include "../cuda/backend.h"
#include "arguments.h"

namespace replknet_ext {
namespace {

cuda::DeviceLimits limits_of(const std::vector<int64_t>& limits) {
  STD_TORCH_CHECK(limits.size() == 4, "limits must be (capability, multiprocessors, shared_per_block, shared_per_sm)");
  for (const int64_t limit : limits)  // leaves room for a few times as much in 32 bits
    STD_TORCH_CHECK(limit >= 0 && limit <= 1 << 24, "limits must lie between 0 and 2^24, got ", limit);
  return {static_cast<int>(limits[0]), static_cast<int>(limits[1]), static_cast<int>(limits[2]),
          static_cast<int>(limits[3])};
}

// JSON: how a launch would go on a device with these limits, or why it can't. Needs no GPU.
std::string cuda_plan(std::vector<int64_t> sizes, std::string dtype, bool channels_last, std::string pass,
                      std::string precision, std::string algorithm, std::vector<int64_t> limits, int64_t variant) {
  const Problem p = problem_of(sizes, dtype, channels_last, pass, precision, algorithm);
  cuda::Route route;
  if (const char* why = cuda::plan_route(p, limits_of(limits), variant_number(variant), &route))
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
         (plan.unmeasured ? std::string(", \"unmeasured\": \"") + plan.unmeasured + "\"" : "") +
         ", \"copied\": " + (route.copied ? "true" : "false") +
         ", \"mmas\": " + std::to_string(plan.mmas) + ", \"cycles\": " + std::to_string(route.cycles) + "}";
}

// JSON: what it costs to ask for the plans of several problems in turn, as a training step does: how many had to be
// made (the others were kept), and the time of all. sizes: ten numbers per problem; passes: one name per problem,
// separated by blanks. For benchmarks and tests.
std::string cuda_plan_cost(std::vector<int64_t> sizes, std::string dtype, bool channels_last, std::string passes,
                           std::string precision, std::string algorithm, std::vector<int64_t> limits) {
  std::istringstream words(passes);
  const std::vector<std::string> names{std::istream_iterator<std::string>(words), {}};
  STD_TORCH_CHECK(sizes.size() == 10 * names.size(), "sizes must hold ten numbers per pass");
  std::vector<Problem> problems;
  auto at = sizes.begin();
  for (const std::string& pass : names) {
    problems.push_back(problem_of({at, at + 10}, dtype, channels_last, pass, precision, algorithm));
    at += 10;
  }
  const cuda::DeviceLimits device = limits_of(limits);
  const int64_t before = cuda::plans_made();
  const auto start = std::chrono::steady_clock::now();
  for (const Problem& p : problems) {
    cuda::Route route;
    cuda::plan_route(p, device, -1, &route);
  }
  const auto time = std::chrono::steady_clock::now() - start;
  return "{\"made\": " + std::to_string(cuda::plans_made() - before) +
         ", \"nanoseconds\": " +
         std::to_string(std::chrono::duration_cast<std::chrono::nanoseconds>(time).count()) + "}";
}

}  // namespace
}  // namespace replknet_ext

STABLE_TORCH_LIBRARY_IMPL(replknet_ext, CompositeExplicitAutograd, m) {
  m.impl("_cuda_plan", TORCH_BOX(&replknet_ext::cuda_plan));
  m.impl("_cuda_plan_cost", TORCH_BOX(&replknet_ext::cuda_plan_cost));
}
