// From a Toeplitz forward plan to launches: pointers, accesses, grid.
#pragma once
#include "../ptx.cuh"
#include "plan.h"

namespace replknet_ext::cuda {

// Bytes of the widest access that p and every whole number of `step` bytes after it allow.
inline int access_bytes(const void* p, int64_t step) {
  const uint64_t m = reinterpret_cast<uint64_t>(p) | static_cast<uint64_t>(step) | 16;
  return static_cast<int>(m & (~m + 1));
}

// Blocks for all channels and tiles along the grid's first axis, for all groups of slots along its second.
inline int launch_groups(ToeplitzFwdKernel kernel, const ToeplitzFwdPlan& plan, const Tensors& t, void* stream) {
  constexpr int64_t kMostBlocksY = 65535;
  const Problem& p = plan.problem;
  ToeplitzFwdArgs a = plan.args;
  a.x = static_cast<const uint16_t*>(t.x);
  a.w = static_cast<const uint16_t*>(t.w);
  a.bias = static_cast<const uint16_t*>(t.bias);
  a.y = static_cast<uint16_t*>(t.out);
  // rows follow each other without gaps, as do pixels; of those a block takes block_channels
  const int64_t bytes = p.dtype == DType::f32 ? 4 : 2, taken = (p.c | a.block_channels) * bytes;
  a.in_vec = access_bytes(t.x, a.channels_last ? taken : p.w * bytes);
  a.out_vec = access_bytes(t.out, a.channels_last ? taken : p.wo * bytes);
  const int64_t columns = static_cast<int64_t>((a.c - 1) / a.block_channels + 1) * a.pair_tiles * a.chunk_tiles;
  const int block_groups = a.block_groups * a.turns;
  int64_t left = (plan.groups + block_groups - 1) / block_groups;
  for (; left > 0; left -= kMostBlocksY, a.group0 += static_cast<int>(kMostBlocksY) * block_groups) {
    const dim3 grid(static_cast<unsigned>(columns), static_cast<unsigned>(left < kMostBlocksY ? left : kMostBlocksY));
    if (const auto e = launch_kernel(kernel, grid, dim3(plan.warps * 32), plan.shared_bytes, stream, a))
      return static_cast<int>(e);
  }
  return 0;
}

}  // namespace replknet_ext::cuda
