// The table of wgmma kernels, fp16 and bf16 in NCHW on sm_90: one line per variant. A variant's number is its place here.
#pragma once

// name: offsets x chunks, n = images
// offsets: chunk offsets of the filter. chunks, images: of a block's tile, whose product is the columns of one wgmma
//  X(name,              offsets, chunks, images)
#define TOEPLITZ_WGMMA_VARIANTS(X)                                     \
  X("wgmma_5x2_n64",     5,       2,      64)  /* batch of 64 */       \
  X("wgmma_5x2_n32",     5,       2,      32)  /* batch of 32 */       \
  X("wgmma_5x4_n16",     5,       4,      16)  /* batch of 16 */

namespace replknet_ext::cuda {

struct ToeplitzWgmmaVariant {
  const char* name;
  int offsets, chunks, images;
};

#define TOEPLITZ_WGMMA_ROW(...) {__VA_ARGS__},
inline constexpr ToeplitzWgmmaVariant kToeplitzWgmma[] = {TOEPLITZ_WGMMA_VARIANTS(TOEPLITZ_WGMMA_ROW)};
#undef TOEPLITZ_WGMMA_ROW
inline constexpr int kToeplitzWgmmaCount = sizeof kToeplitzWgmma / sizeof *kToeplitzWgmma;

}  // namespace replknet_ext::cuda
