// The table of ring kernels, fp16 and bf16 in NCHW: one line per variant. A variant's number is its place here.
#pragma once

// name: offsets x chunks, w = whole plane width, t = tiled, sq = in 4x4 tiles, g2 = 2 groups of slots per block
// line: rows of a line: 1 (tiles of 2 rows x 8 columns, a chunk has 8 columns) or 2 (4x4 tiles, a chunk has 4)
// offsets: chunk offsets of the filter. pairs, groups, chunks: what a warp sums at once: output pairs of lines, groups of 8
// slots, chunks. whole: the plane is exactly that many chunks wide, input and output
//  X(name,            line, offsets, pairs, groups, chunks, whole)
#define TOEPLITZ_RING_VARIANTS(X)                                                        \
  X("ring_5x7_w",     1, 5, 2, 1, 7,  true)  /* 56 K31 */                                \
  X("ring_5x6_w",     1, 5, 2, 1, 6,  true)  /* 48 K29 */                                \
  X("ring_5x5_w",     1, 5, 2, 1, 5,  true)  /* 40 K27 */                                \
  X("ring_5x4_w_g2",  1, 5, 2, 2, 4,  true)  /* 32 K29 */                                \
  X("ring_5x3_w_g2",  1, 5, 2, 2, 3,  true)  /* 24 K27 */                                \
  X("ring_5x12_w",    1, 5, 1, 1, 12, true)  /* 96 K31 */                                \
  X("ring_5x10_w",    1, 5, 1, 1, 10, true)  /* 80 K27 */                                \
  X("ring_5x8_w",     1, 5, 2, 1, 8,  true)  /* 64 K31 */                                \
  X("ring_3x7_w",     1, 3, 2, 1, 7,  true)  /* 56 K5 to K17 */                          \
  X("ring_3x4_w_g2",  1, 3, 2, 2, 4,  true)  /* 32 K5 to K17 */                          \
  X("ring_9x7_w",     1, 9, 1, 1, 7,  true)  /* 56 5x51 */                               \
  X("ring_7x4_w",     1, 7, 2, 1, 4,  true)  /* 28 5x49 */                               \
  X("ring_5x4_t",     1, 5, 2, 1, 4,  false) /* any plane, up to 33 taps wide */         \
  X("ring_5x5_t",     1, 5, 2, 1, 5,  false) /* likewise */                              \
  X("ring_5x6_t",     1, 5, 2, 1, 6,  false) /* likewise */                              \
  X("ring_3x6_t",     1, 3, 2, 1, 6,  false) /* any plane, up to 17 taps wide */         \
  X("ring_9x7_sq",    2, 9, 1, 1, 7,  true)  /* 28 K23 to K33 */                         \
  X("ring_7x7_sq",    2, 7, 1, 1, 7,  true)  /* 28 K19 to K25 */                         \
  X("ring_5x7_sq",    2, 5, 1, 1, 7,  true)  /* 28 K11 to K17 */                         \
  X("ring_3x7_sq",    2, 3, 1, 1, 7,  true)  /* 28 49x5 */                               \
  X("ring_5x5_sq",    2, 5, 1, 1, 5,  true)  /* 20 K11 to K17 */                         \
  X("ring_5x3_sq",    2, 5, 2, 1, 3,  true)  /* 12 K11 to K17 */                         \
  X("ring_3x4_sq",    2, 3, 2, 1, 4,  true)  /* 14 47x5 */                               \
  X("ring_9x9_sq",    2, 9, 1, 1, 9,  true)  /* 36 K23 to K33 */                         \
  X("ring_9x11_sq",   2, 9, 1, 1, 11, true)  /* 44 K23 to K33 */                         \
  X("ring_9x13_sq",   2, 9, 1, 1, 13, true)  /* 52 K23 to K33 */                         \
  X("ring_3x7_t_sq",  2, 3, 2, 1, 7,  false) /* any plane, up to 9 taps wide: 56 51x5 */ \
  X("ring_3x5_t_sq",  2, 3, 2, 1, 5,  false) /* likewise */

namespace replknet_ext::cuda {

struct ToeplitzRingVariant {
  const char* name;
  int line, offsets, pairs, groups, chunks;
  bool whole;
};

#define TOEPLITZ_RING_ROW(...) {__VA_ARGS__},
inline constexpr ToeplitzRingVariant kToeplitzRing[] = {TOEPLITZ_RING_VARIANTS(TOEPLITZ_RING_ROW)};
#undef TOEPLITZ_RING_ROW
inline constexpr int kToeplitzRingCount = sizeof kToeplitzRing / sizeof *kToeplitzRing;

}  // namespace replknet_ext::cuda
