// Constants of the time model that every family's planner uses, so that their plans compare: cycles of the busiest SM.
// Predictions for an H200, used to choose between kernels; none was fitted to a measurement.
#pragma once

namespace replknet_ext::cuda {

// An m16n8k16 of 16-bit operands, or an m16n8k8 of tf32, on one of the SM's four tensor cores by mma.sync (63 % of
// wgmma's rate).
constexpr double kMmaCycles = 6.4;
constexpr double kSharedBytes = 128;   // shared memory, bytes a cycle
constexpr double kGlobalBytes = 18;    // an SM's share of memory bandwidth, bytes a cycle
constexpr double kL2Bytes = 24;        // an SM's share of L2 bandwidth, bytes a cycle, in whole sectors of 32 bytes
constexpr double kFmaPerCycle = 128;   // float32, of an SM
constexpr double kStartCycles = 2500;  // launch, first loads, filter, barriers of a block
constexpr double kExposed = 0.3;       // share of a block's start that the other blocks of its SM do not hide

// Share of the tensor rate that w warps an SM keep busy: one warp a scheduler waits for its own products now and then.
inline double busy(int w) { return w >= 12 ? 0.95 : w >= 8 ? 0.9 : w >= 4 ? 0.75 : 0.75 * w / 4; }

}  // namespace replknet_ext::cuda
