// What the host tells the FMA kernels. See fma/fma.cuh for the mapping that these numbers describe.
#pragma once
#include <cstdint>

namespace replknet_ext::cuda {

struct FmaStrides {  // in elements
  int64_t n, c, y, x;
};

// out = sum over the taps (i, j) of filter[i, j] * in[y + i - pad_top, x + j - pad_left], for every plane: an image's
// channel. fwd: the filter is the layer's, one per channel. bwd_weight: it is the output's gradient, one per plane, and out
// is the filter's gradient, summed over images.
struct FmaArgs {
  const void *x, *f, *bias;  // bias may be null
  void *out, *grad_bias;     // grad_bias may be null
  FmaStrides xs, fs, os;
  int n, c, h, w;            // input planes
  int fh, fw, oh, ow;        // filter and output
  int pad_top, pad_left;
  int activation, out_vec;         // out_vec: elements of an output store
  int channels_log2, images_log2;  // of a block, whose planes they are
  int row_groups, column_groups;   // of the output: kRows rows, 4 columns
  int tile_rows, tile_columns;     // of a block, in groups
  int column_tiles, tiles;
  int merge;                 // row groups whose columns share warps
  int shift, chunks;         // chunk t is the taps 4t - shift ... 4t - shift + 3; shift 1: chunk 0 has 3
  int part_rows, part_chunks, parts_down, parts_along;  // the filter in parts
  int in_pitch, in_plane, in_tail, f_pitch, f_plane;    // elements of shared memory; in_tail: zeros after the last row
  // a warp's lanes while it loads the input and the filter: along channels and along a row
  int channel_lanes, lanes_log2, f_channel_lanes, f_lanes_log2;
  int slices, slice_rows;    // of a part's rows, to different warps (bwd_weight; else 1)
  int images_per_split;      // bwd_weight
  int image0;                // first image of this launch
};

// The kernels behind the variants table; one file per dtype, so that they compile side by side.
using FmaKernel = void (*)(FmaArgs);
FmaKernel fma_f32(bool weight, int variant);
FmaKernel fma_f64(bool weight);

}  // namespace replknet_ext::cuda
