// What the host tells the Toeplitz kernels. See toeplitz_fwd.cuh for the mapping that these numbers describe.
#pragma once
#include <cstdint>

namespace replknet_ext::cuda {

struct ToeplitzFwdArgs {
  const uint16_t *x, *w, *bias;  // bias may be null; float in the float32 kernels
  uint16_t* y;
  int n, c, h, width, ho, wo, kh, kw, pad_left;
  int flip, activation;
  int in_vec, out_vec;       // bytes of a global access: 16, 8, 4 or 2; of neighbouring columns or, channels_last, channels
  int split_log2;            // every image stands in 1 << split_log2 slots of an MMA's 8 columns, as row groups
  int split_rows;            // output rows of a row group, whole pairs; row group g starts at row g * split_rows
  // A pair is 2 rows and a chunk 8 columns; of variants in 4x4 tiles 4 rows (R below) and 4 columns.
  int row_offset;            // input pair q is the R rows from Rq - row_offset on
  int q_first, q_end;        // input pairs that exist for some slot
  int ky0, shift, table_rows;  // pair j meets pair q at ky = ky0 + Rk, k = q - j + shift, 0 <= k < table_rows
  int d_first;               // chunk offset of table column 0
  int pairs, chunks;         // output pairs of a slot, output chunks
  int block_pairs, block_chunks, block_groups;  // a block's tile: pairs x chunks of the output, groups of 8 slots
  int pair_tiles, chunk_tiles;
  int part_rows, parts_down, parts_along;  // the filter in parts: table rows per part, parts in ky, parts in kx
  int in_chunks, plane;      // input chunks of a full tile, bytes of shared memory of one group's input
  int group0;                // first group of this launch
  // staged kernels only
  int channels_last;         // else NCHW
  int block_channels;        // channels a block has in shared memory at once
  int load_once;             // input of every part of the filter is loaded together
  int turns;                 // tiles of block_groups that a block computes one after the other
};

// The kernels behind the variants table; one file per dtype, so that they compile side by side.
using ToeplitzFwdKernel = void (*)(ToeplitzFwdArgs);
ToeplitzFwdKernel toeplitz_fwd_f16(int variant);
ToeplitzFwdKernel toeplitz_fwd_bf16(int variant);
ToeplitzFwdKernel toeplitz_staged_f16(int kernel);  // the staged ones by their place in their table
ToeplitzFwdKernel toeplitz_staged_bf16(int kernel);
ToeplitzFwdKernel toeplitz_staged_tf32(int kernel);
ToeplitzFwdKernel toeplitz_staged_bf16x3(int kernel);

}  // namespace replknet_ext::cuda
