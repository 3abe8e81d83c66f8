// The table of the staged Toeplitz kernels (staged.cuh): one line per variant, compiled for f16 and bf16 (channels_last),
// or for tf32 and bf16x3 (float32 in either memory format). Columns as in toeplitz_fwd/variants.h.
#pragma once

//  X(name,      offsets, pairs, chunks, whole, warps, blocks, elsewhere)
#define TOEPLITZ_STAGED_HALF_VARIANTS(X) \
  X("rt_5x7_w", 5, 2, 7, true,  16, 1, 1) /* 56 K19 to K33 */ \
  X("rt_5x4_w", 5, 2, 4, true,  16, 1, 1) /* 28 */ \
  X("rt_3x2_w", 3, 2, 2, true,  16, 1, 1) /* 14 */ \
  X("rt_1x1_w", 1, 2, 1, true,  16, 1, 1) /* 7 */ \
  X("rt_3x4_t", 3, 2, 4, false, 16, 1, 1) /* any plane */ \
  X("rt_5x4_t", 5, 2, 4, false, 16, 1, 1) \
  X("rt_5x6_w", 5, 2, 6, true,  16, 1, 1) /* 48 */ \
  X("rt_5x3_w", 5, 2, 3, true,  16, 1, 1) /* 24 */ \
  X("rt_3x7_w", 3, 2, 7, true,  16, 1, 1) /* 56 K3 to K17 */ \
  X("rt_3x4_w", 3, 2, 4, true,  16, 1, 1) /* 28 K3 to K17 */

#define TOEPLITZ_STAGED_FLOAT_VARIANTS(X) \
  X("rt_5x7_w", 5, 2, 7, true,  16, 1, 1) /* 56 K19 to K33 */ \
  X("rt_5x4_w", 5, 2, 4, true,  16, 1, 1) /* 28 */ \
  X("rt_3x2_w", 3, 2, 2, true,  16, 1, 1) /* 14 */ \
  X("rt_1x1_w", 1, 2, 1, true,  16, 1, 1) /* 7 */ \
  X("rt_3x4_t", 3, 2, 4, false, 12, 1, 1) \
  X("rt_5x4_t", 5, 2, 4, false, 12, 1, 1) /* any plane */
