// The table of FMA kernels: one line per variant. A variant's number is its place here; add new ones at the end.
#pragma once

// rows: output rows of a thread, whose tile is rows x 4. warps: max per block; blocks: per SM that registers are left
// for at that many warps
//  X(name,      type,   rows, warps, blocks)
#define FMA_VARIANTS(X)                                   \
  X("7x4",     float,  7,    16,    1) /* 56, 28, 14, 7 */ \
  X("8x4",     float,  8,    16,    1)

#define FMA_VARIANTS_F64(X) X("4x4_f64", double, 4, 8, 1)

namespace replknet_ext::cuda {

struct FmaVariant {
  const char *fwd, *weight;
  bool f64;
  int rows, warps, blocks;
};

#define FMA_ROW(name, type, rows, warps, blocks) \
  {"fma_" name, "fma_weight_" name, sizeof(type) == 8, rows, warps, blocks},
inline constexpr FmaVariant kFma[] = {FMA_VARIANTS(FMA_ROW) FMA_VARIANTS_F64(FMA_ROW)};
#undef FMA_ROW
inline constexpr int kFmaCount = sizeof kFma / sizeof kFma[0];

}  // namespace replknet_ext::cuda
