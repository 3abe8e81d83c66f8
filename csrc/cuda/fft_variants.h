// The tables of FFT kernels: one line a length. A variant's number is its place in its table; add new ones at the end.
#pragma once

// length = q p, coprime, no twiddles between them.
// Place n of a transform stands at (n mod q) * a + n mod p, columns are s apart (odd): chosen so that few lanes of half
// a warp meet a bank twice.
// threads: of a block, which takes every item of the middle part in as few rounds as registers allow. blocks: an SM
// that registers are left for. waves: shared memory cycles of a window, counted by the emulator, over those of its
// bytes: idle lanes and conflicts.
//  X(name, q, p, a, s, threads, blocks, waves)
#define FFT_FWD_VARIANTS(X)                                                          \
  X("fft_14",  7, 2,  4,  31,  64,  16, 3.0)  /* 7 K13 */                   \
  X("fft_20",  5, 4,  5,  35,  64,  16, 2.2)  /* 12 K13, 10 K13 */          \
  X("fft_28",  7, 4,  4,  31,  128, 8,  1.7)  /* 14 K27, 14 K13 */          \
  X("fft_36",  9, 4,  5,  55,  192, 5,  1.8)  /* 20 K27 */                  \
  X("fft_42",  7, 6,  6,  49,  160, 5,  1.5)  /* 28 K29, 24 K27 */          \
  X("fft_56",  7, 8,  9,  69,  256, 3,  1.4)  /* 40 K29, 28 K51 */          \
  X("fft_63",  9, 7,  9,  79,  288, 3,  1.5)  /* 48 K29 */                  \
  X("fft_72",  9, 8,  8,  77,  352, 2,  1.25) /* 56 K31 */                  \
  X("fft_90",  9, 10, 10, 91,  480, 1,  1.25) /* 80 K19, 56 K51 */          \
  X("fft_112", 7, 16, 16, 121, 416, 1,  1.05) /* 96 K31; larger by tiles */

#define FFT_WEIGHT_VARIANTS(X)                                                       \
  X("fft_14",  7,  2,  4,  31,  64,  16, 3.0)                               \
  X("fft_20",  5,  4,  5,  35,  64,  16, 2.2)                               \
  X("fft_28",  7,  4,  4,  31,  128, 8,  1.7)                               \
  X("fft_36",  9,  4,  5,  55,  192, 5,  1.8)                               \
  X("fft_42",  7,  6,  6,  49,  160, 4,  1.5)                               \
  X("fft_56",  7,  8,  9,  69,  256, 2,  1.4)                               \
  X("fft_63",  9,  7,  9,  79,  288, 2,  1.5)                               \
  X("fft_72",  9,  8,  8,  77,  256, 2,  1.25)                              \
  X("fft_90",  9,  10, 10, 91,  480, 1,  1.25)                              \
  X("fft_112", 16, 7,  7,  121, 480, 1,  1.35)

namespace replknet_ext::cuda {

#ifdef __CUDACC__
#define REPLKNET_EXT_BOTH __host__ __device__
#else
#define REPLKNET_EXT_BOTH
#endif

struct FftVariant {
  const char* name;
  int q, p, a, s, threads, blocks;
  double waves;
};

#define FFT_ROW(name, q, p, a, s, threads, blocks, waves) {name, q, p, a, s, threads, blocks, waves},
inline constexpr FftVariant kFftFwd[] = {FFT_FWD_VARIANTS(FFT_ROW)};
inline constexpr FftVariant kFftWeight[] = {FFT_WEIGHT_VARIANTS(FFT_ROW)};
#undef FFT_ROW
inline constexpr int kFftFwdCount = sizeof kFftFwd / sizeof *kFftFwd;
inline constexpr int kFftWeightCount = sizeof kFftWeight / sizeof *kFftWeight;

// Columns of the half spectrum: the classes q and -q of the first factor share theirs; the classes 0 and q / 2, their
// own mirrors, hold p / 2 + 1.
REPLKNET_EXT_BOTH constexpr int fft_self_columns(int p) { return p / 2 + 1; }
REPLKNET_EXT_BOTH constexpr int fft_columns(int q, int p) {
  return q % 2 ? fft_self_columns(p) + q / 2 * p : 2 * fft_self_columns(p) + (q / 2 - 1) * p;
}
REPLKNET_EXT_BOTH constexpr int fft_tables_bytes(int q, int p) { return (14 * q * p + 16 * p + 7) / 8 * 8; }

}  // namespace replknet_ext::cuda
