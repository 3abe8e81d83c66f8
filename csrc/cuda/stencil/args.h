// What the host tells the stencil kernels. See stencil/stencil.cuh for the mapping that these numbers describe.
#pragma once
#include <cstdint>

namespace replknet_ext::cuda {

struct StencilTensor {
  const void* p;
  int64_t image, channel, row, column;  // elements between neighbours
  int h, w;
  int vec;  // elements of the widest access that every row (NCHW) or pixel (channels_last) allows
};

// fwd: in is the input, out the output. bwd_weight: in is the input, out the output's gradient.
struct StencilArgs {
  StencilTensor in, out;
  const void *filter, *bias;  // fwd; bias may be null
  void *grad, *grad_bias;     // bwd_weight: gradients of the filter and, or null, of the bias
  float* partial;             // bwd_weight: [split][c][kh * kw + 1] in their place, or null
  int n, c;
  int kh, kw, top, left;      // the filter, and its first row (fwd) and column in the kernel's square of taps
  int pad_top, pad_left;      // above the filter; on the left of that square
  int flip, activation;
  int dtype;                  // as in weight_sum.cuh
  int channels_log2;          // lanes along channels
  int channel_groups;         // blocks along channels
  int strips, tile_rows;      // of an output plane: columns of a thread, rows of a thread
  int items;                  // threads' worth of outputs of a channel: [tile][image][strip]
  int turns;                  // bwd_weight: items of a thread
  int parts, part_rows;       // bwd_weight: blocks along the filter's rows, rows of each
};

// The kernels behind the variants table; one file per type, so that they compile side by side.
using StencilKernel = void (*)(StencilArgs);
StencilKernel stencil_half(bool weight, int kernel);
StencilKernel stencil_f32(bool weight, int kernel);

}  // namespace replknet_ext::cuda
