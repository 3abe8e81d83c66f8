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

// How a launch would go; for explain(), tests and predictions.
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
  int spill_rows, spill_columns;
};

int fwd_variant_count();
const char* fwd_variant_name(int variant);

// Why a variant (-1: every variant) can't run a problem on a device; null if it can.
const char* fwd_supports(const Problem& p, const DeviceLimits& limits, int variant);

// The plan for a problem with 16-byte aligned tensors; variant -1: the best one. Returns null or the reason why not.
const char* plan_fwd(const Problem& p, const DeviceLimits& limits, int variant, LaunchPlan* plan);

// y = act(conv(x, w) + bias) on a CUDA stream, bias may be null. With p.flip it is bwd_input. Reads and writes device
// memory of the current device, contiguous NCHW; allocates nothing and never synchronises. Returns 0, kUnsupported
// (fwd_supports says why) or a CUDA error; error_message turns either into words.
constexpr int kUnsupported = -1;
int launch_fwd(const Problem& p, const void* x, const void* w, const void* bias, void* y, int variant,
               const DeviceLimits& limits, void* stream);
const char* error_message(int error);

}  // namespace replknet_ext::cuda
