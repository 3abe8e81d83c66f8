// The table of FFT kernels: one line a length. A variant's number is its place here; add new ones at the end.
#pragma once

// length = q p, coprime, no twiddles between them. threads: of a block. blocks: an SM that registers are left for,
// in fwd and in bwd_weight.
//  X(name, q, p, threads, blocks, weight_blocks)
#define FFT_VARIANTS(X)                                                                \
  X("fft_14",  7,  2,  64,  12, 12) /* 7 K13 */                                        \
  X("fft_20",  5,  4,  64,  12, 10) /* 12 K13, 10 K13 */                               \
  X("fft_28",  7,  4,  128, 6,  5)  /* 14 K27, 14 K13 */                               \
  X("fft_42",  7,  6,  160, 4,  4)  /* 28 K29, 24 K27 */                               \
  X("fft_56",  7,  8,  256, 2,  2)  /* 40 K29, 28 K51 */                               \
  X("fft_72",  9,  8,  352, 2,  2)  /* 56 K31, 48 K29 */                               \
  X("fft_90",  9,  10, 480, 1,  1)  /* 80 K19, 56 K51 */                               \
  X("fft_112", 16, 7,  480, 1,  1)  /* 96 K31; larger planes by tiles */

namespace replknet_ext::cuda {

#ifdef __CUDACC__
#define REPLKNET_EXT_BOTH __host__ __device__
#else
#define REPLKNET_EXT_BOTH
#endif

struct FftVariant {
  const char* name;
  int q, p, threads, blocks, weight_blocks;
};

#define FFT_ROW(name, q, p, threads, blocks, weight_blocks) {name, q, p, threads, blocks, weight_blocks},
inline constexpr FftVariant kFft[] = {FFT_VARIANTS(FFT_ROW)};
#undef FFT_ROW
inline constexpr int kFftCount = sizeof kFft / sizeof *kFft;

// Columns of the half spectrum: the classes q and -q of the first factor share theirs; the classes 0 and q / 2, their
// own mirrors, hold p / 2 + 1.
REPLKNET_EXT_BOTH constexpr int fft_self_columns(int p) { return p / 2 + 1; }
REPLKNET_EXT_BOTH constexpr int fft_columns(int q, int p) {
  return q % 2 ? fft_self_columns(p) + q / 2 * p : 2 * fft_self_columns(p) + (q / 2 - 1) * p;
}
// Complex numbers between the columns, and between the row pairs, in shared memory: odd, so that lanes which go from
// one to the next meet different banks.
REPLKNET_EXT_BOTH constexpr int fft_stride(int length) { return length | 1; }

REPLKNET_EXT_BOTH constexpr int fft_tables_bytes(int q, int p) { return (6 * q * p * 2 + 5 * p * 4 + 7) / 8 * 8; }

}  // namespace replknet_ext::cuda
