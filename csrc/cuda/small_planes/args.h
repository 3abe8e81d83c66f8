// What the host tells the kernels for small planes. See small_planes/fwd.cuh and small_planes/weight.cuh for the mappings.
#pragma once
#include <cstdint>

#include "../toeplitz_weight/args.h"

namespace replknet_ext::cuda {

// A tensor as the kernels read it: of every image the planes of a block's channels, one after the other, as they lie in
// memory. In shared memory such a run takes `pitch` words, 4 more than a multiple of 8: then lanes that read 4 words
// each of 8 images meet every bank once.
struct SmallTensor {
  const uint16_t* p;
  int pixels;  // of a plane
  int vec;     // bytes of a global access that every run of a full block allows: 16, 8, 4 or 2
  int pitch;   // words
  int plane;   // channels_last: elements between the channels of an image in shared memory, even
};

struct SmallFwdArgs {
  SmallTensor x, y;  // y.p is written
  const uint16_t *w, *bias;  // bias may be null
  int n, c, h, width, ho, wo, kh, kw, pad_top, pad_left;
  int flip, activation;
  int channels, channel_warps;                  // channels that a block has at once, warps of each
  int round_channels;                           // channels_last: of a block's, those computed at the same time
  int units, image_tiles;                       // all that is to do, in units of such channels x 16 kM images
  int buffers, buffer_bytes;                    // 1 or 2; 2 where a block has more units than one
  int tiles;                                    // of 8 outputs, of a plane
  int canvas_pitch, canvas_bytes, copy_bytes;   // elements of a canvas row; bytes of a channel's canvas, of one copy
  uint32_t by_width, by_wo;                     // reciprocals: reciprocal()
};

struct SmallWeightArgs {
  ToeplitzWeightArgs toeplitz;             // of one part and one split; groups of 16 images, 4 warps
  int pitch[2];           // bytes of an image's plane of x and of grad in shared memory
  uint32_t by_words[2];   // reciprocals of the words of their rows
  int stage_bytes;        // of 16 images of both
  SmallTensor run[2];     // x and grad of planes of one chunk, which are copied in runs
};

// n / d for n * d < 2^20 as n * reciprocal(d) >> 20
REPLKNET_EXT_BOTH constexpr uint32_t reciprocal(int d) {
  return ((1u << 20) + static_cast<uint32_t>(d) - 1) / static_cast<uint32_t>(d);
}

// The kernels behind the tables of variants; one file per dtype, so that they compile side by side.
using SmallFwdKernel = void (*)(SmallFwdArgs);
using SmallWeightKernel = void (*)(SmallWeightArgs);
SmallFwdKernel small_fwd_f16(int variant);
SmallFwdKernel small_fwd_bf16(int variant);
SmallWeightKernel small_weight_f16(int variant);
SmallWeightKernel small_weight_bf16(int variant);

}  // namespace replknet_ext::cuda
