// The table of ring kernels, fp16 and bf16 in NCHW: one line per variant. A variant's number is its place here.
#pragma once

// name: offsets x chunks, w = whole plane width, t = tiled, g2 = 2 groups of slots per block
// offsets: chunk offsets of the filter. pairs, groups, chunks: what a warp sums at once: output row pairs, groups of 8
// slots, 8-column chunks. whole: the plane is exactly that many chunks wide, input and output
//  X(name,            offsets, pairs, groups, chunks, whole)
#define TOEPLITZ_RING_VARIANTS(X)                                                       \
  X("ring_5x7_w",     5, 2, 1, 7,  true)  /* 56 K31 */                                  \
  X("ring_5x6_w",     5, 2, 1, 6,  true)  /* 48 K29 */                                  \
  X("ring_5x5_w",     5, 2, 1, 5,  true)  /* 40 K27 */                                  \
  X("ring_5x4_w_g2",  5, 2, 2, 4,  true)  /* 28 K29 */                                  \
  X("ring_5x3_w_g2",  5, 2, 2, 3,  true)  /* 24 and 20 K27 */                           \
  X("ring_5x12_w",    5, 1, 1, 12, true)  /* 96 K31 */                                  \
  X("ring_5x10_w",    5, 1, 1, 10, true)  /* 80 K27 */                                  \
  X("ring_5x8_w",     5, 2, 1, 8,  true)  /* 64 K31 */                                  \
  X("ring_3x7_w",     3, 2, 1, 7,  true)  /* 56 K5 to K17 */                            \
  X("ring_3x4_w_g2",  3, 2, 2, 4,  true)  /* 28 K5 to K17 */                            \
  X("ring_5x4_t",     5, 2, 1, 4,  false) /* any plane, up to 33 taps wide */           \
  X("ring_5x5_t",     5, 2, 1, 5,  false) /* likewise */                                \
  X("ring_5x6_t",     5, 2, 1, 6,  false) /* likewise */                                \
  X("ring_3x6_t",     3, 2, 1, 6,  false) /* any plane, up to 17 taps wide */

namespace replknet_ext::cuda {

struct ToeplitzRingVariant {
  const char* name;
  int offsets, pairs, groups, chunks;
  bool whole;
};

#define TOEPLITZ_RING_ROW(...) {__VA_ARGS__},
inline constexpr ToeplitzRingVariant kToeplitzRing[] = {TOEPLITZ_RING_VARIANTS(TOEPLITZ_RING_ROW)};
#undef TOEPLITZ_RING_ROW
inline constexpr int kToeplitzRingCount = sizeof kToeplitzRing / sizeof *kToeplitzRing;

}  // namespace replknet_ext::cuda
