// The tables of the kernels for small planes: one line per variant. A variant's number is its place in its pass's table.
#pragma once

namespace replknet_ext::cuda {

inline constexpr int kSmallTiles = 7;  // of 8 outputs, a warp of the forward

// groups: of 16 images, a block. even: planes (input and output) of an even width. warps: max per SM by registers
// last: channels_last, with few images of many channels, so that sectors are read whole
//  X(name,             groups, even, last, warps)
#define SMALL_FWD_VARIANTS(X)                                                  \
  X("small_g4_even",    4, true,  false, 12) /* 14 K27, 12, 10, 16 wide */     \
  X("small_g4",         4, false, false, 12) /* 7 K13, any width */            \
  X("small_g2_even",    2, true,  false, 16) /* batches up to 32 */            \
  X("small_g2",         2, false, false, 16)                                   \
  X("small_g2_even_cl", 2, true,  true,  16)                                   \
  X("small_g2_cl",      2, false, true,  16)                                   \
  X("small_g1_even_cl", 1, true,  true,  16)                                   \
  X("small_g1_cl",      1, false, true,  16)

inline constexpr int kSmallStages = 4;  // groups of 16 images that a block of bwd_weight has in shared memory

// chunks: of 8 columns, of a row at most. rows: row offsets of a warp; a channel has 4 warps, of one chunk 1.
// warps: max per SM by registers
//  X(name,              chunks, rows, warps)
#define SMALL_WEIGHT_VARIANTS(X)                                            \
  X("small_weight_7x3",  2,      7,    12) /* 14 K27, 12, 10: even widths */ \
  X("small_weight_8x3",  2,      8,    12) /* 16 K31 */                      \
  X("small_weight_14x1", 1,      14,   16) /* 7 K13, up to 8x8 */

struct SmallFwdVariant {
  const char* name;
  int groups;
  bool even, last;
  int warps;
};
struct SmallWeightVariant {
  const char* name;
  int chunks, rows, warps;
};
#define SMALL_ROW(...) {__VA_ARGS__},
inline constexpr SmallFwdVariant kSmallFwd[] = {SMALL_FWD_VARIANTS(SMALL_ROW)};
inline constexpr SmallWeightVariant kSmallWeight[] = {SMALL_WEIGHT_VARIANTS(SMALL_ROW)};
#undef SMALL_ROW
inline constexpr int kSmallFwdCount = sizeof kSmallFwd / sizeof kSmallFwd[0];
inline constexpr int kSmallWeightCount = sizeof kSmallWeight / sizeof kSmallWeight[0];

}  // namespace replknet_ext::cuda
