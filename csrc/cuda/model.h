// The time model that every family's planner uses, so that their plans compare: cycles of the busiest SM, from what a
// block costs (a family's own) and from how blocks share an SM and follow each other (here, for all).
// Predictions for an H200, used to choose between kernels; none was fitted to a measurement. Processors that fuse a product
// and a sum (aarch64) may round them otherwise in the last bit, and so break a tie of two plans otherwise.
#pragma once
#include <algorithm>

#include "backend.h"

namespace replknet_ext::cuda {

constexpr double kClockMHz = 1755;  // turns cycles into microseconds, also in Python: an H200's clock under load
// An m16n8k16 of 16-bit operands, or an m16n8k8 of tf32, on one of the SM's four tensor cores by mma.sync (63 % of
// wgmma's rate).
constexpr double kMmaCycles = 6.4;
// An m64n128k16 by wgmma, A from registers, on all four tensor cores. 0: no device has measured it; until then its family is
// used by name or by the tuner alone, and predicted by what others report for large products (790 TFLOP/s).
constexpr double kWgmmaCycles = 0;
constexpr double kWgmmaReported = 77;
constexpr double kSharedBytes = 128;   // shared memory, bytes per cycle
constexpr double kGlobalBytes = 18;    // an SM's share of memory bandwidth, bytes per cycle
constexpr double kL2Bytes = 24;        // an SM's share of L2 bandwidth, bytes per cycle, in whole sectors of 32 bytes
constexpr double kFmaPerCycle = 128;   // float32, of an SM
constexpr double kStartCycles = 2500;  // launch, first loads, filter, barriers of a block
constexpr double kSecondLaunch = 3500; // a launch that waits for the one before, and its loads
constexpr double kExposed = 0.3;       // share of a block's waiting that the other blocks of its SM do not hide
constexpr double kCopyShare = 0.85;    // of the bandwidth, that a tiled transpose reaches; a guess
constexpr double kAlmost = 1 - 1e-9;   // of a bound that rounding must not lift above what it bounds

// Tensor-core utilisation with w warps per SM: a single warp per scheduler sometimes waits for its own products.
constexpr double kMostBusy = 0.95;
inline double busy(int w) { return w >= 12 ? kMostBusy : w >= 8 ? 0.9 : w >= 4 ? 0.75 : 0.75 * w / 4; }

// Blocks that an SM holds at once. register_warps: those that the kernel's registers leave room for, as its variant and
// __launch_bounds__ say.
inline int resident_blocks(const DeviceLimits& limits, int warps, int64_t shared_bytes, int register_warps) {
  const int c = limits.capability;
  const bool large = c == 80 || c == 90 || (c >= 100 && c < 120);  // the chips of data centres
  const int most_warps = large ? 64 : 48, most_blocks = large ? 32 : c == 86 || c == 87 ? 16 : 24;
  constexpr int64_t kReserved = 1024, kUnit = 128;  // bytes of shared memory: a block's own, of an allocation
  const int64_t by_shared = limits.shared_per_sm / ((shared_bytes + kUnit - 1) / kUnit * kUnit + kReserved);
  return static_cast<int>(std::max<int64_t>(
      1, std::min<int64_t>({by_shared, register_warps / warps, most_warps / warps, most_blocks})));
}

// The blocks of the busiest SM, in waves: `beside` at a time, `last` in the last wave.
struct Waves {
  Waves(int64_t blocks, int resident, int sms)
      : rounds(std::max<int64_t>(1, (blocks + sms - 1) / sms)), beside(std::min<int64_t>(resident, rounds)),
        last((rounds - 1) % beside + 1) {}
  int64_t rounds, beside, last;
};

struct BlockCycles {
  double load;   // its first loads: blocks that start together queue up for theirs
  double later;  // what a block waits for that takes the place of one that has ended
  double move;   // all of its loads and stores, by the bandwidth of memory
  double end;    // after the last block's work: stores, latencies
};

// Cycles of the busiest SM. work(n): of n blocks side by side, without the waiting that the others hide.
template <class Work>
double sm_cycles(const Waves& w, const BlockCycles& b, const Work& work) {
  const double later = static_cast<double>(w.rounds - w.beside), full = static_cast<double>((w.rounds - w.last) / w.beside);
  double sum = work(static_cast<int>(w.last));
  // Blocks drift out of phase, so in the tail fewer run side by side for half a block's time.
  if (full > 0) sum += full * work(static_cast<int>(w.beside)) + std::max(0.0, (work(1) - sum / static_cast<double>(w.last)) / 2);
  const double exposed = w.beside > 1 ? kExposed : 1;
  const double waits = exposed * (static_cast<double>(w.beside - 1) * b.load + later * b.later);
  // where memory is the limit, waiting for it is not counted twice
  return kStartCycles + b.load + std::max(sum + waits, static_cast<double>(w.rounds) * b.move - b.load) + b.end;
}

// The launch that adds up partial sums: each is written, and read again.
inline double second_launch_cycles(const DeviceLimits& limits, double bytes) {
  return kSecondLaunch + 2 * bytes / (kGlobalBytes * limits.sms);
}

// Both large tensors into another memory format: a launch each (transpose.cu).
inline double copy_cycles(const Problem& p, const DeviceLimits& limits) {
  const double element = p.dtype == DType::f64 ? 8 : p.dtype == DType::f32 ? 4 : 2;
  const double moved = 2 * element * static_cast<double>(p.n * p.c) * static_cast<double>(p.h * p.w + p.ho * p.wo);
  return 2 * kSecondLaunch + moved / (kCopyShare * kGlobalBytes * limits.sms);
}

}  // namespace replknet_ext::cuda
