// From a problem to launch numbers: which variant, which split of the batch. Host code without CUDA.
#pragma once
#include "../backend.h"
#include "args.h"

namespace replknet_ext::cuda {

struct ToeplitzWeightPlan : LaunchPlan {
  ToeplitzWeightArgs args;  // without pointers and what depends on them: see set_access
};

// The model's instructions of a warp that sums the diagonals of its row offsets.
inline double diagonal_instructions(int offsets, int rows, int line = 1) {
  constexpr double kSums = 46;  // of the sums of 8 that it forms at once
  const int at_once = rows_at_once(offsets, line), turns = (rows + at_once - 1) / at_once;
  const int quads = at_once * squares(line) * sum_columns(offsets, line) / 4, lanes = 32;
  return tile_floats(offsets, line) / 128.0 +
         turns * (4.0 * offsets * at_once + (quads + lanes - 1) / lanes * kSums / line);
}

// Fills in how x or grad is read: `access` bytes at a time (NCHW: of a row; channels_last: of a pixel's channels).
void set_access(const Problem& p, int variant, int block_channels, int access, ToeplitzWeightTensor* t);

}  // namespace replknet_ext::cuda
