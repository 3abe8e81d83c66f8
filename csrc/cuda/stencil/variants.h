// The table of stencil kernels: one line per variant. A variant's number is its place here; add new ones at the end.
#pragma once
#include <cstdint>

// type: of the elements; uint16_t is fp16 and bf16. taps: of the filter, along both axes; columns of smaller filters are
// filled up with zeros. last: channels_last. blocks: per SM by registers in fwd, in bwd_weight. rows: of
// the filter that a thread of bwd_weight sums.
// NCHW in 16 bit: tensor cores are faster wherever the model looked, of 3 taps by little.
//  X(name,       type,     taps, last,  blocks, rows, weight_blocks)
#define STENCIL_HALF_VARIANTS(X)                     \
  X("3_half",     uint16_t, 3,    false, 6, 3, 6)    \
  X("3_half_cl",  uint16_t, 3,    true,  5, 3, 5)    \
  X("5_half_cl",  uint16_t, 5,    true,  4, 5, 4)    \
  X("7_half_cl",  uint16_t, 7,    true,  3, 7, 2)    \
  X("9_half_cl",  uint16_t, 9,    true,  2, 5, 2)    \
  X("11_half_cl", uint16_t, 11,   true,  2, 6, 2)

#define STENCIL_FLOAT_VARIANTS(X)                    \
  X("3_f32",      float,    3,    false, 6, 3, 5)    \
  X("5_f32",      float,    5,    false, 4, 5, 4)    \
  X("7_f32",      float,    7,    false, 4, 7, 3)    \
  X("3_f32_cl",   float,    3,    true,  6, 3, 5)    \
  X("5_f32_cl",   float,    5,    true,  5, 5, 5)    \
  X("7_f32_cl",   float,    7,    true,  4, 7, 4)    \
  X("9_f32",      float,    9,    false, 3, 9, 3)    \
  X("11_f32",     float,    11,   false, 3, 11, 2)   \
  X("9_f32_cl",   float,    9,    true,  4, 9, 2)    \
  X("11_f32_cl",  float,    11,   true,  3, 11, 2)

namespace replknet_ext::cuda {

constexpr int kStencilThreads = 128;  // of a block

// Output columns of a thread: 8 of a row are 16 bytes of 16-bit elements; with two channels registers leave room for 7,
// which divides the maps of the papers.
constexpr int stencil_columns(bool last) { return last ? 7 : 8; }
// Channels of a thread: neighbours in memory that fill 4 bytes.
constexpr int stencil_channels(bool is_float, bool last) { return last && !is_float ? 2 : 1; }
// Columns on each side of an NCHW thread's own that it loads: whole aligned pieces. taps 1: the output's gradient.
constexpr int stencil_halo(int taps) { return taps == 1 ? 0 : taps <= 5 ? 2 : taps <= 9 ? 4 : 6; }
// Floats of a row of the filter in shared memory, read 4 at a time, and of a thread's channels: an odd number of quads,
// so that no two of 8 neighbours meet in a bank.
constexpr int stencil_filter_row(int taps, int channels) { return (taps * channels + 3) / 4 * 4; }
constexpr int stencil_filter_pitch(int taps, int channels) {
  return (taps * stencil_filter_row(taps, channels) / 4 | 1) * 4;
}
// The ring of bwd_weight: rows of a thread's output gradient in pieces of 16 bytes. A power of two where that costs little.
constexpr int stencil_ring_rows(int rows) { return rows == 3 ? 4 : rows <= 8 ? 8 : rows; }
constexpr int stencil_ring_pieces(bool is_float, bool last) { return is_float || last ? 2 : 1; }
constexpr int stencil_ring_bytes(int rows, bool is_float, bool last) {
  return stencil_ring_rows(rows) * stencil_ring_pieces(is_float, last) * 16 * kStencilThreads;
}
// Sums of a thread, for the bias gradient as well, as they lie in shared memory: an odd number of floats.
constexpr int stencil_sums_pitch(int rows, int taps, int channels) { return (rows * taps + 1) * channels | 1; }

struct StencilVariant {
  const char *fwd, *weight;
  bool is_float, last;
  int kernel;  // place in the table of its type
  int taps, blocks, rows, weight_blocks;
  constexpr int columns() const { return stencil_columns(last); }
  constexpr int channels() const { return stencil_channels(is_float, last); }
};

#define STENCIL_ONE(...) +1
inline constexpr int kStencilHalfCount = 0 STENCIL_HALF_VARIANTS(STENCIL_ONE);
inline constexpr int kStencilCount = kStencilHalfCount STENCIL_FLOAT_VARIANTS(STENCIL_ONE);
#undef STENCIL_ONE

struct StencilTable {
  StencilVariant rows[kStencilCount];
};

constexpr StencilTable stencil_table() {
#define STENCIL_ROW(name, type, taps, last, blocks, rows, weight_blocks) \
  {"stencil_" name, "stencil_weight_" name, sizeof(type) == 4, last, 0, taps, blocks, rows, weight_blocks},
  StencilTable t{{STENCIL_HALF_VARIANTS(STENCIL_ROW) STENCIL_FLOAT_VARIANTS(STENCIL_ROW)}};
#undef STENCIL_ROW
  for (int i = 0; i < kStencilCount; ++i) t.rows[i].kernel = i < kStencilHalfCount ? i : i - kStencilHalfCount;
  return t;
}
inline constexpr StencilTable kStencilTable = stencil_table();
inline constexpr const StencilVariant (&kStencil)[kStencilCount] = kStencilTable.rows;

}  // namespace replknet_ext::cuda
