// The table of toeplitz_weight kernels: one line per variant. A variant's number is its place here; add new ones at the end.
#pragma once

// name: offsets x chunks, w = rows of at most that many chunks, input and output; t = column tiles with a halo,
// sq = as w, in 4x4 tiles; NCHW alone
// math: what the tensor cores multiply: half (float16 or bfloat16), tf32, bf16x3
// line: rows of a line: 1 for 8-column chunks, 2 for 4x4 tiles and 4-column chunks
// offsets: chunk offsets of the filter, rows: row offsets, both of a warp; chunks: of an output row (of a tile)
// warps: max per block; bounds the registers
//  X(name,               math,   line, offsets, rows, chunks, whole, warps)
#define TOEPLITZ_WEIGHT_VARIANTS(X)                                                            \
  X("rtw_5x7_w",          half,   1, 5, 4, 7, true, 16)  /* 56 K31 */                          \
  X("rtw_5x4_w",          half,   1, 5, 4, 4, true, 16)  /* 32 K29 */                          \
  X("rtw_3x2_w",          half,   1, 3, 7, 2, true, 16)  /* 14 K27, 12 and 16 wide */          \
  X("rtw_1x1_w",          half,   1, 1, 7, 1, true, 16)  /* 7 K13, up to 8 wide */             \
  X("rtw_5x6_t",          half,   1, 5, 4, 6, false, 16) /* any plane, any K */                \
  X("rtw_3x4_t",          half,   1, 3, 6, 4, false, 16) /* any plane, small K */              \
  X("rtw_5x7_w_tf32",     tf32,   1, 5, 4, 7, true, 12)                                        \
  X("rtw_3x2_w_tf32",     tf32,   1, 3, 7, 2, true, 16)                                        \
  X("rtw_1x1_w_tf32",     tf32,   1, 1, 7, 1, true, 16)                                        \
  X("rtw_5x4_t_tf32",     tf32,   1, 5, 3, 4, false, 16)                                       \
  X("rtw_5x7_w_bf16x3",   bf16x3, 1, 5, 4, 7, true, 8)                                         \
  X("rtw_3x2_w_bf16x3",   bf16x3, 1, 3, 7, 2, true, 12)                                        \
  X("rtw_1x1_w_bf16x3",   bf16x3, 1, 1, 7, 1, true, 16)                                        \
  X("rtw_5x4_t_bf16x3",   bf16x3, 1, 5, 4, 4, false, 12)                                       \
  X("rtw_5x3_w",          half,   1, 5, 4, 3, true, 16)  /* 24 K27 */                          \
  X("rtw_7x4_w",          half,   1, 7, 3, 4, true, 12)  /* 32 K63, 28 K35 to K57 */           \
  X("rtw_3x7_w",          half,   1, 3, 5, 7, true, 16)  /* 56 K3 to K17 */                    \
  X("rtw_3x4_w",          half,   1, 3, 6, 4, true, 16)  /* 32 K3 to K17 */                    \
  X("rtw_3x3_w",          half,   1, 3, 7, 3, true, 16)  /* 24 K3 to K17 */                    \
  X("rtw_9x7_sq",         half,   2, 9, 2, 7, true, 16) /* 28 K23 to K33 */                    \
  X("rtw_7x7_sq",         half,   2, 7, 2, 7, true, 16) /* 28 K19 to K25 */                    \
  X("rtw_5x7_sq",         half,   2, 5, 3, 7, true, 16) /* 28 K3 to K17 */                     \
  X("rtw_9x5_sq",         half,   2, 9, 2, 5, true, 16) /* 20 K27 */                           \
  X("rtw_5x5_sq",         half,   2, 5, 3, 5, true, 16) /* 20 K3 to K17 */                     \
  X("rtw_5x3_sq",         half,   2, 5, 4, 3, true, 16) /* 12 K13 */                           \
  X("rtw_9x9_sq",         half,   2, 9, 2, 9, true, 16) /* 36 K29 */                           \
  X("rtw_9x11_sq",        half,   2, 9, 2, 11, true, 12) /* 44 K29 */                          \
  X("rtw_9x15_sq",        half,   2, 9, 2, 15, true, 12) /* 60 K31 */                          \
  X("rtw_3x14_sq",        half,   2, 3, 3, 14, true, 16) /* 56 51x5 */                         \
  X("rtw_3x7_sq",         half,   2, 3, 5, 7, true, 16) /* 28 49x5 */                          \
  X("rtw_3x4_sq",         half,   2, 3, 6, 4, true, 16) /* 14 47x5 */

namespace replknet_ext::cuda {

enum class ToeplitzWeightMath { half, tf32, bf16x3 };

struct ToeplitzWeightVariant {
  const char* name;
  ToeplitzWeightMath math;
  int line, offsets, rows, chunks;
  bool whole;
  int warps;
};

#define TOEPLITZ_ROW(name, math, line, offsets, rows, chunks, whole, warps) \
  {name, ToeplitzWeightMath::math, line, offsets, rows, chunks, whole, warps},
inline constexpr ToeplitzWeightVariant kToeplitzWeight[] = {TOEPLITZ_WEIGHT_VARIANTS(TOEPLITZ_ROW)};
#undef TOEPLITZ_ROW
inline constexpr int kToeplitzWeightCount = sizeof kToeplitzWeight / sizeof kToeplitzWeight[0];

}  // namespace replknet_ext::cuda
