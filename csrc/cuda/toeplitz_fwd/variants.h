// The table of Toeplitz forward kernels, fp16 and bf16 in NCHW: one line per variant. A variant's number is its place here, the
// staged kernels' after these.
#pragma once
#include "staged_variants.h"

// name: offsets x chunks, w = whole plane width, t = tiled, sq = whole plane width in 4x4 tiles, p4 = 4 row pairs per warp,
// g2 = 2 groups of slots per warp
// line: rows of a line: 1 (tiles of 2 rows x 8 columns, a chunk has 8 columns) or 2 (4x4 tiles, a chunk has 4)
// offsets: chunk offsets of the filter a fragment table holds (5: up to 33 taps where the plane is not narrower)
// pairs, groups, chunks: a warp's tile. whole: the plane is exactly that many chunks wide, input and output
// rotate: weight fragments pass between row pairs in registers. warps: max per block
// blocks: min resident per SM (__launch_bounds__), on sm_90 and elsewhere
//  X(name,        line, offsets, pairs, groups, chunks, whole, rotate, warps, blocks, elsewhere)
#define TOEPLITZ_FWD_VARIANTS(X)                                                                                    \
  X("rt_5x7_w",    1, 5, 2, 1, 7,  true,  true,  8, 2, 1) /* 56 K31 */                                              \
  X("rt_5x4_w",    1, 5, 2, 1, 4,  true,  true,  8, 2, 2) /* 32 K29 */                                              \
  X("rt_3x2_w",    1, 3, 2, 1, 2,  true,  true,  8, 3, 3) /* 14 K27, 12 and 16 wide */                              \
  X("rt_1x1_w",    1, 1, 2, 1, 1,  true,  true,  8, 4, 4) /* 7 K13, up to 8 wide */                                 \
  X("rt_3x7_w",    1, 3, 2, 1, 7,  true,  true,  8, 2, 2) /* 56 K3 to K17 */                                        \
  X("rt_3x4_w",    1, 3, 2, 1, 4,  true,  true,  8, 2, 2) /* 32 K3 to K17, 28 K7 */                                \
  X("rt_5x3_w",    1, 5, 2, 1, 3,  true,  true,  8, 2, 2) /* 24 K27 */                                              \
  X("rt_5x5_w",    1, 5, 2, 1, 5,  true,  true,  8, 2, 2) /* 40 K29 */                                              \
  X("rt_5x6_w",    1, 5, 2, 1, 6,  true,  true,  8, 2, 2) /* 48 K29 */                                              \
  X("rt_5x10_w",   1, 5, 2, 1, 10, true,  true,  8, 1, 1) /* 80 K31 */                                              \
  X("rt_5x12_w",   1, 5, 2, 1, 12, true,  true,  8, 1, 1) /* 96 K31 */                                              \
  X("rt_9x7_w",    1, 9, 2, 1, 7,  true,  false, 8, 2, 2) /* 56 5x51, K35 to K65 */                                 \
  X("rt_7x4_w",    1, 7, 2, 1, 4,  true,  true,  8, 2, 2) /* 28 5x49, K33 to K57 */                                 \
  X("rt_3x4_t",    1, 3, 2, 1, 4,  false, true,  8, 2, 2) /* any plane, small K */                                  \
  X("rt_5x4_t",    1, 5, 2, 1, 4,  false, true,  8, 2, 2) /* any plane, any K */                                    \
  X("rt_3x6_t",    1, 3, 2, 1, 6,  false, true,  8, 2, 2)                                                           \
  X("rt_5x6_t",    1, 5, 2, 1, 6,  false, true,  8, 1, 1)                                                           \
  X("rt_5x7_w_p4", 1, 5, 4, 1, 7,  true,  true,  8, 1, 1)                                                           \
  X("rt_3x2_w_p4", 1, 3, 4, 1, 2,  true,  true,  8, 2, 2) /* 14 K27: half the shared memory traffic */              \
  X("rt_5x3_w_g2", 1, 5, 2, 2, 3,  true,  true,  8, 2, 2) /* 24 K27, likewise */                                    \
  X("rt_3x3_w",    1, 3, 2, 1, 3,  true,  true,  8, 2, 2) /* 24 K3 to K17 */                                        \
  X("rt_3x5_w",    1, 3, 2, 1, 5,  true,  true,  8, 2, 2) /* 40 K3 to K17 */                                        \
  X("rt_3x6_w",    1, 3, 2, 1, 6,  true,  true,  8, 2, 2) /* 48 K3 to K17 */                                        \
  X("rt_7x7_w",    1, 7, 2, 1, 7,  true,  true,  8, 1, 1) /* 56 K33 to K49 */                                       \
  X("rt_9x7_sq",   2, 9, 2, 1, 7,  true,  true,  6, 2, 2) /* 28 K23 to K33 */                                       \
  X("rt_7x7_sq",   2, 7, 2, 1, 7,  true,  true,  6, 2, 2) /* 28 K19 to K25 */                                       \
  X("rt_5x7_sq",   2, 5, 2, 1, 7,  true,  true,  6, 2, 2) /* 28 K11 to K17 */                                       \
  X("rt_3x7_sq",   2, 3, 2, 1, 7,  true,  true,  8, 2, 2) /* 28 49x5 */                                             \
  X("rt_9x5_sq",   2, 9, 2, 1, 5,  true,  true,  6, 2, 2) /* 20 K27 */                                              \
  X("rt_5x5_sq",   2, 5, 2, 1, 5,  true,  true,  8, 2, 2) /* 20 K11 to K17 */                                       \
  X("rt_5x3_sq",   2, 5, 2, 1, 3,  true,  true,  8, 2, 2) /* 12 K13 */                                              \
  X("rt_9x9_sq",   2, 9, 1, 1, 9,  true,  false, 8, 2, 2) /* 36 K29 */                                              \
  X("rt_9x11_sq",  2, 9, 1, 1, 11, true,  false, 8, 2, 2) /* 44 K29 */                                              \
  X("rt_9x13_sq",  2, 9, 1, 1, 13, true,  false, 8, 2, 2) /* 52 K29 */                                              \
  X("rt_9x15_sq",  2, 9, 1, 1, 15, true,  false, 8, 2, 2) /* 60 K31 */                                              \
  X("rt_3x14_sq",  2, 3, 1, 1, 14, true,  false, 8, 2, 2) /* 56 51x5 */                                             \
  X("rt_3x4_sq",   2, 3, 2, 1, 4,  true,  true,  8, 2, 2) /* 14 47x5 */

namespace replknet_ext::cuda {

// plain: fp16 and bf16 in NCHW (toeplitz_fwd/toeplitz_fwd.cuh); the others are staged kernels (toeplitz_fwd/staged.cuh)
enum class ToeplitzFwdKind { plain, half, tf32, bf16x3 };

struct ToeplitzFwdVariant {
  const char* name;
  ToeplitzFwdKind kind;
  int kernel;  // place among the kernels of its kind
  int line, offsets, pairs, groups, chunks;
  bool whole, rotate;
  int warps, blocks, blocks_elsewhere;
};

#define TOEPLITZ_ONE(...) +1
inline constexpr int kToeplitzPlainCount = 0 TOEPLITZ_FWD_VARIANTS(TOEPLITZ_ONE);
inline constexpr int kToeplitzHalfCount = 0 TOEPLITZ_STAGED_HALF_VARIANTS(TOEPLITZ_ONE), kToeplitzFloatCount = 0 TOEPLITZ_STAGED_FLOAT_VARIANTS(TOEPLITZ_ONE);
#undef TOEPLITZ_ONE
inline constexpr int kToeplitzFwdCount = kToeplitzPlainCount + kToeplitzHalfCount + 2 * kToeplitzFloatCount;

struct ToeplitzFwdTable {
  ToeplitzFwdVariant rows[kToeplitzFwdCount];
};

constexpr ToeplitzFwdTable toeplitz_table() {
#define TOEPLITZ_ROW(name, line, offsets, pairs, groups, chunks, whole, rotate, warps, blocks, blocks_elsewhere) \
  {name, ToeplitzFwdKind::plain, 0, line, offsets, pairs, groups, chunks, whole, rotate, warps, blocks, blocks_elsewhere},
#define TOEPLITZ_HALF(name, offsets, pairs, chunks, whole, warps, blocks, blocks_elsewhere) \
  {name "_cl", ToeplitzFwdKind::half, 0, 1, offsets, pairs, 1, chunks, whole, false, warps, blocks, blocks_elsewhere},
#define TOEPLITZ_TF32(name, offsets, pairs, chunks, whole, warps, blocks, blocks_elsewhere) \
  {name "_tf32", ToeplitzFwdKind::tf32, 0, 1, offsets, pairs, 1, chunks, whole, false, warps, blocks, blocks_elsewhere},
#define TOEPLITZ_BF16X3(name, offsets, pairs, chunks, whole, warps, blocks, blocks_elsewhere)  \
  {name "_bf16x3", ToeplitzFwdKind::bf16x3, 0, 1, offsets, pairs, 1, chunks, whole, false, warps, \
   blocks,         blocks_elsewhere},
  ToeplitzFwdTable t{{TOEPLITZ_FWD_VARIANTS(TOEPLITZ_ROW) TOEPLITZ_STAGED_HALF_VARIANTS(
      TOEPLITZ_HALF) TOEPLITZ_STAGED_FLOAT_VARIANTS(TOEPLITZ_TF32) TOEPLITZ_STAGED_FLOAT_VARIANTS(TOEPLITZ_BF16X3)}};
#undef TOEPLITZ_ROW
#undef TOEPLITZ_HALF
#undef TOEPLITZ_TF32
#undef TOEPLITZ_BF16X3
  for (int i = 1; i < kToeplitzFwdCount; ++i)
    t.rows[i].kernel = t.rows[i].kind == t.rows[i - 1].kind ? t.rows[i - 1].kernel + 1 : 0;
  return t;
}
inline constexpr ToeplitzFwdTable kToeplitzTable = toeplitz_table();
inline constexpr const ToeplitzFwdVariant (&kToeplitzFwd)[kToeplitzFwdCount] = kToeplitzTable.rows;

}  // namespace replknet_ext::cuda
