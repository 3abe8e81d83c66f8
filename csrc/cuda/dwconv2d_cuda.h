// The CUDA backend as the rest of the project sees it: no torch and no CUDA headers, so any C++ file can include it.
#pragma once
#include <cstddef>

#include "../dwconv.h"

namespace replknet_ext::cuda {

struct DeviceLimits {
  int capability;        // 10 * major + minor: 80, 90, 120
  int sms;
  int shared_per_block;  // bytes of dynamic shared memory a block may opt in to
  int shared_per_sm;     // bytes
};

// Reads a device's limits; 0 or a CUDA error code. Costs microseconds: keep the result.
int device_limits(int device, DeviceLimits* limits);

// How a launch would go; for explain(), tests and predictions. A family fills in what it has.
struct LaunchPlan {
  int variant;
  const char* name;
  int row_groups;              // 8 row groups of one image, or 1: 8 images
  int block_pairs, block_chunks, block_groups;  // block tile: output row pairs, 8-column chunks, groups of 8 slots
  int passes;                  // parts the filter goes through shared memory in
  int warps, shared_bytes;
  int blocks_per_sm;
  int64_t blocks;
  double mmas;                 // tensor instructions of the whole launch, estimated
  double cycles;               // the model's cycles of the busiest SM: a prediction, used to choose
  // How far beyond the outputs that see it an Inf or NaN of the input can turn outputs into NaN. 14 columns at most
  // where the kernel's chunk offsets are those of the filter ("same" padding of every K of the papers: 8 to 14).
  // -1: anywhere in the plane.
  int spill_rows, spill_columns;
  int64_t workspace_bytes = 0;  // device memory that the caller lends, 256-byte aligned
  const char* family = "";
};

// Variants of a pass over all families: a variant's number is its place here.
int variant_count(Pass pass);
const char* variant_name(Pass pass, int variant);

// Why a variant (-1: every variant) can't run a problem on a device; null if it can.
const char* supports(const Problem& p, const DeviceLimits& limits, int variant);

// The plan for a problem with 16-byte aligned tensors; variant -1: the fastest by the model. Null or the reason why not.
const char* plan(const Problem& p, const DeviceLimits& limits, int variant, LaunchPlan* plan);

// The same for tensors that the caller may copy into NCHW and back: of a channels_last problem, the plan in its own format
// or that on copies, which the model's time includes, whichever is faster. p becomes the problem that runs.
const char* plan_route(Problem* p, const DeviceLimits& limits, int variant, LaunchPlan* plan);

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

// fwd: out = act(conv(x, w) + bias); with p.flip it is bwd_input. bwd_weight: out and grad_bias from grad and x.
// Launches on a CUDA stream; allocates nothing and never synchronises. Returns 0, kUnsupported (supports says why) or a
// CUDA error; error_message turns either into words. The same bits on every run.
constexpr int kUnsupported = -1;
int launch(const Problem& p, const Tensors& tensors, const DeviceLimits& limits, int variant, void* stream);
const char* error_message(int error);

}  // namespace replknet_ext::cuda
