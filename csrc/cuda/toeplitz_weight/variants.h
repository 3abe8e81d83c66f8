// The table of toeplitz_weight kernels: one line per variant. A variant's number is its place here; add new ones at the end.
#pragma once

// name: offsets x chunks, w = rows of at most that many chunks, input and output; t = column tiles with a halo
// math: what the tensor cores multiply: half (float16 or bfloat16), tf32, bf16x3
// offsets: chunk offsets of the filter, rows: row offsets, both of a warp; chunks: of an output row (of a tile)
// warps: max per block; bounds the registers
//  X(name,               math,   offsets, rows, chunks, whole, warps)
#define TOEPLITZ_WEIGHT_VARIANTS(X)                                                            \
  X("rtw_5x7_w",          half,   5, 4, 7, true, 16)  /* 56 K31 */                       \
  X("rtw_5x4_w",          half,   5, 4, 4, true, 16)  /* 28 K29, 24 K27 */               \
  X("rtw_3x2_w",          half,   3, 7, 2, true, 16)  /* 14 K27, 12 and 16 wide */       \
  X("rtw_1x1_w",          half,   1, 7, 1, true, 16)  /* 7 K13, up to 8 wide */          \
  X("rtw_5x6_t",          half,   5, 4, 6, false, 16) /* any plane, any K */             \
  X("rtw_3x4_t",          half,   3, 6, 4, false, 16) /* any plane, small K */           \
  X("rtw_5x7_w_tf32",     tf32,   5, 4, 7, true, 12)                                     \
  X("rtw_3x2_w_tf32",     tf32,   3, 7, 2, true, 16)                                     \
  X("rtw_1x1_w_tf32",     tf32,   1, 7, 1, true, 16)                                    \
  X("rtw_5x4_t_tf32",     tf32,   5, 3, 4, false, 16)                                    \
  X("rtw_5x7_w_bf16x3",   bf16x3, 5, 4, 7, true, 8)                                      \
  X("rtw_3x2_w_bf16x3",   bf16x3, 3, 7, 2, true, 12)                                     \
  X("rtw_1x1_w_bf16x3",   bf16x3, 1, 7, 1, true, 16)                                    \
  X("rtw_5x4_t_bf16x3",   bf16x3, 5, 4, 4, false, 12)                                    \
  X("rtw_5x3_w",          half,   5, 4, 3, true, 16)  /* 24 K27, 20 K27 */               \
  X("rtw_7x4_w",          half,   7, 3, 4, true, 12)  /* 32 K63, 28 K33 to K57 */        \
  X("rtw_3x7_w",          half,   3, 5, 7, true, 16)  /* 56 K3 to K17, 51x5 */           \
  X("rtw_3x4_w",          half,   3, 6, 4, true, 16)  /* 28 K3 to K17 */                 \
  X("rtw_3x3_w",          half,   3, 7, 3, true, 16)  /* 24 and 20 K3 to K17 */

namespace replknet_ext::cuda {

enum class ToeplitzWeightMath { half, tf32, bf16x3 };

struct ToeplitzWeightVariant {
  const char* name;
  ToeplitzWeightMath math;
  int offsets, rows, chunks;
  bool whole;
  int warps;
};

#define TOEPLITZ_ROW(name, math, offsets, rows, chunks, whole, warps) \
  {name, ToeplitzWeightMath::math, offsets, rows, chunks, whole, warps},
inline constexpr ToeplitzWeightVariant kToeplitzWeight[] = {TOEPLITZ_WEIGHT_VARIANTS(TOEPLITZ_ROW)};
#undef TOEPLITZ_ROW
inline constexpr int kToeplitzWeightCount = sizeof kToeplitzWeight / sizeof kToeplitzWeight[0];

}  // namespace replknet_ext::cuda
