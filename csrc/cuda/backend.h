// The CUDA backend as the rest of the project sees it: no torch and no CUDA headers, so any C++ file can include it.
#pragma once
#include <array>
#include <cstddef>
#include <memory>

#include "../problem.h"

namespace replknet_ext::cuda {

struct DeviceLimits {
  int capability;        // 10 * major + minor: 80, 90, 120
  int sms;
  int shared_per_block;  // bytes of dynamic shared memory a block may opt in to
  int shared_per_sm;     // bytes
};

// Reads a device's limits; 0 or a CUDA error code. Costs microseconds: keep the result.
int device_limits(int device, DeviceLimits* limits);

// The same of the current device for plan(). Where no kernel of this build runs on it, as the driver is older than the
// build's CUDA runtime or the build has no code for the GPU, `capability` is 0, and plan() says so. False: not to be kept,
// ask again at the next call; a driver before 12.3 cannot tell while a stream is captured.
bool usable_limits(int device, DeviceLimits* limits);

// A number of a plan that only its family knows the meaning of, by name; for explain(), tests and benchmarks.
struct PlanDetail {
  const char* name = nullptr;
  int64_t value = 0;
};

// How a launch goes: what all families have. A family's own plan derives from it and holds its kernel's arguments, so that
// launch needs nothing else.
struct LaunchPlan {
  Problem problem{};            // that it runs
  int family_index = 0;         // place in REPLKNET_EXT_FAMILIES
  int family_variant = 0;       // number of the variant within its family
  int variant = 0;              // its number over all families
  const char* family = "";
  const char* name = "";        // of the variant
  int parts = 1;                // that the filter goes through shared memory in
  int warps = 0, shared_bytes = 0, blocks_per_sm = 0;
  int64_t blocks = 0;
  int64_t workspace_bytes = 0;  // device memory that the caller lends, 256-byte aligned
  double mmas = 0;              // tensor instructions of the whole launch, estimated
  const char* unmeasured = nullptr;  // a variant that would also do, and is not chosen as no device has measured its family
  double cycles = 0;            // the model's cycles of the busiest SM: a prediction, used to choose
  // How far beyond the outputs that see it an Inf or NaN of the input can turn outputs into NaN. 14 columns at most
  // where the kernel's chunk offsets are those of the filter ("same" padding of every K of the papers: 8 to 14).
  // -1: anywhere in the plane.
  int spill_rows = 0, spill_columns = 0;
  std::array<PlanDetail, 4> details{};  // the first without a name ends them
};

// Plans are made once per problem, device and variant, kept (plan_cache.h), and never change.
using PlanHandle = std::shared_ptr<const LaunchPlan>;

// Variants of a pass over all families: a variant's number is its place here.
int variant_count(Pass pass);
const char* variant_name(Pass pass, int variant);

// The plan for a problem with 16-byte aligned tensors; variant -1: the fastest by the model. Null or the reason why not.
const char* plan(const Problem& p, const DeviceLimits& limits, int variant, PlanHandle* plan);

// The same for tensors that the caller may copy into NCHW and back: of a channels_last problem, the plan in its own format
// or that on copies, whichever is faster.
struct Route {
  PlanHandle plan;  // its problem's memory format is the one that the tensors must have
  bool copied;      // the problem's is another
  double cycles;    // of the plan and the copies
};
const char* plan_route(const Problem& p, const DeviceLimits& limits, int variant, Route* route);

// How many plans this process has made, apart from those that were found again.
int64_t plans_made();

// Device memory of the current device, dense in the problem's memory format, filters and their gradients [c][kh][kw].
struct Tensors {
  const void* x;                  // input
  const void* w = nullptr;        // fwd: the filter
  const void* bias = nullptr;     // fwd: [c] or null
  const void* grad = nullptr;     // bwd_weight: gradient of the output
  void* out = nullptr;            // fwd: the output; bwd_weight: the filter's gradient, in the problem's dtype
  void* grad_bias = nullptr;      // bwd_weight: [c] in the problem's dtype, or null
  void* workspace = nullptr;      // of plan's size
};

// fwd: out = act(conv(x, w) + bias); with the problem's flip it is bwd_input. bwd_weight: out and grad_bias from grad and
// x. Launches on a CUDA stream; allocates nothing and never synchronises; an empty batch launches nothing. Returns 0 or a
// CUDA error, which error_message turns into words. The same bits on every run.
int launch(const LaunchPlan& plan, const Tensors& tensors, void* stream);
const char* error_message(int error);

// Copies matrices [rows][columns], which follow each other, into [columns][rows]: a tensor of channels_last into NCHW
// where rows are the pixels of an image and columns its channels, and back the other way round. element_bytes: 2, 4 or 8.
// Launches as `launch` does, and returns what it returns.
int transpose(const void* from, void* to, int64_t matrices, int64_t rows, int64_t columns, int element_bytes, void* stream);

}  // namespace replknet_ext::cuda
