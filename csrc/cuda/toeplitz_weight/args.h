// What the host tells the kernels of toeplitz_weight. See toeplitz_weight/toeplitz_weight.cuh for the mapping that these numbers describe.
#pragma once
#include <cstdint>

#include "../../integers.h"

namespace replknet_ext::cuda {

struct FastDivisor {  // quotients of small numbers: n * divisor < 2^31
  int divisor;
  uint32_t multiplier;  // ceil(2^31 / divisor)
};

struct ToeplitzWeightTensor {  // x or grad
  const void* p;
  int h, w, chunks;  // planes; chunks of a line of shared memory
  int access;        // bytes of a global access that every row start allows; channels_last: of one pixel's channels
  FastDivisor by_chunks;
  FastDivisor by_units;  // channels of the block; channels_last: accesses of a pixel
};

// A line is a row and a chunk 8 columns of it; of variants in 4x4 tiles a line is 2 rows and a chunk 4 columns.
struct ToeplitzWeightArgs {
  ToeplitzWeightTensor tensor[2];    // x, grad
  float* partial;         // [split][c][kh * kw + 1]: sums, last the bias gradient; null: one split, straight to out
  void *out, *grad_bias;  // grad_bias may be null
  int n, c, kh, kw, pad_left;
  int pad_top;            // in whole lines
  int dtype;              // of out: 0 float32, 1 float16, 2 bfloat16
  int channels_last;
  int split_log2;         // every image stands in 1 << split_log2 slots of the contraction, as row groups
  int split_rows;         // output rows of a row group, whole pairs; row group g starts at row g * split_rows
  // A job is a group of slots and a column tile; split s takes the jobs s, s + splits, ..., which are split_groups groups
  // and split_tiles tiles further each.
  int jobs, splits, split_groups, split_tiles;
  int pairs, stage_pairs, stages, ahead;  // output line pairs of a slot, pairs of a stage, stages, stages fetched ahead
  int tiles;              // column tiles
  int row_first, row_end; // input lines that exist for some slot, counted from its row group's first output line
  int dy_first, dy_end;   // row offsets with a product: input line - first line of the output pair + pad_top
  int d_first;            // first chunk offset: input chunk - output chunk
  int parts_down, parts_along;  // the filter in parts: by row offsets and by chunk offsets
  int row_warps, block_channels;  // warps of a channel, channels of a block
  int x_ring;             // lines of x held in shared memory
  int x_bytes, grad_bytes, plane_bytes;  // of x, of grad, of one of the two halves that bf16x3 splits both into
  int row_offset;         // the rest of the padding: line i of x starts at row (rows of a line) * i - row_offset
  int item_rows;          // lines that a thread copies in turn
  FastDivisor by_burst, by_steady;  // such groups of lines: of x in a job's first stage, of a stage
};

// The end of a block: floats of shared memory. sum_diagonals says what they hold. line: rows of a line.
REPLKNET_EXT_BOTH constexpr int squares(int line) { return 2 * line * line; }  // of a product
REPLKNET_EXT_BOTH constexpr int sum_columns(int offsets, int line = 1) {  // diagonals of a row offset, the last one empty
  return 8 / line * (offsets + 1);
}
REPLKNET_EXT_BOTH constexpr int square_floats(int offsets, int line = 1) {  // of all chunk offsets
  return 8 / line * (sum_columns(offsets, line) + 4);
}
REPLKNET_EXT_BOTH constexpr int rows_at_once(int offsets, int line = 1) {
  return line == 1 ? 16 / (sum_columns(offsets) / 4) : 1;
}
REPLKNET_EXT_BOTH constexpr int tile_floats(int offsets, int line = 1) {  // of a warp
  return rows_at_once(offsets, line) * squares(line) * square_floats(offsets, line);
}

// The kernels behind the variants table; one file per dtype, so that they compile side by side.
using ToeplitzWeightKernel = void (*)(ToeplitzWeightArgs);
ToeplitzWeightKernel toeplitz_weight_f16(int variant);
ToeplitzWeightKernel toeplitz_weight_bf16(int variant);
ToeplitzWeightKernel toeplitz_weight_f32(int variant);

}  // namespace replknet_ext::cuda
