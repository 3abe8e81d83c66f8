// What the host tells the FFT kernels. See fft/fft.cuh for the mapping that these numbers describe.
#pragma once
#include <cstdint>

namespace replknet_ext::cuda {

enum class FftDType { f32, f16, bf16 };  // in the order of weight_sum.cuh's dtype
#ifdef __CUDACC__
__host__ __device__
#endif
constexpr int fft_bytes(FftDType t) { return t == FftDType::f32 ? 4 : 2; }

// A window of planes that is transformed, or written: window row r of tile t is row t * step_y + origin_y + r of the
// plane (zeros outside it) and stands at place (r + slot_y) mod L of the transform; columns likewise.
struct FftWindow {
  int64_t image, channel, row, column;  // strides in elements; those of a flipped filter are negative
  int height, width;                    // of the plane
  int rows, columns;                    // of the window
  int origin_y, origin_x, step_y, step_x;
  int slot_y, slot_x;
  // Rows lie `pitch` bytes apart in shared memory, an odd number of words; copied `unit` elements at a time.
  int pitch, unit;
  // Row pair p: rows order[p] and order[pairs + p], so that the places of 16 pairs fall into different banks; one of
  // them is `rows`, which is no row, where their number is odd.
  int pairs, padded;   // padded: that many items, so that half a warp seldom belongs to two groups of items
  uint32_t magic;      // 2^20 / padded, rounded up
  uint8_t order[176];
};

struct FftArgs {
  const void* source[2];   // fwd: the filter, the input. bwd_weight: the gradient of the output, the input
  void* out;               // fwd: the output. bwd_weight: the filter's gradient, or partial sums by split
  const void* bias;        // fwd; may be null
  void* grad_bias;         // bwd_weight: by channel, or partial sums by split; may be null
  FftWindow from[2], to;
  int64_t items, split_items;  // (image, tile) pairs, and how many of them a block takes
  int64_t out_split;           // elements between the partial sums of two splits
  void* spectra;               // device memory of the variants that keep a spectrum there, by block
  int64_t spectra_offset;      // of it in the workspace, in bytes
  unsigned jobs;               // fwd: (channel, split) pairs; a block takes every gridDim-th
  int channels, splits, tiles_y, tiles_x;
  int activation;
  FftDType dtype, out_dtype;  // of the operands; of what bwd_weight writes: partial sums are float32
  float scale;
};

// The kernels behind the table of FFT variants; one file per pass, so that they compile side by side.
using FftKernel = void (*)(FftArgs);
FftKernel fft_fwd(int variant);
FftKernel fft_weight(int variant);

}  // namespace replknet_ext::cuda
