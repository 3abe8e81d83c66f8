// The tables of FFT kernels: one line a length. A variant's number is its place in its table; add new ones at the end.
#pragma once
#include <cstdint>

#include "../../integers.h"

// length = q p, coprime, no twiddles between them.
// Place n of a transform stands at (n mod q) * a + (n mod p) * b, columns are s apart (odd): chosen so that few
// lanes of half a warp meet a bank twice.
// threads: of a block, which takes every item of the middle part in as few rounds as registers allow. blocks: an SM
// that registers leave room for. waves: shared memory cycles of a window, counted by the emulator, over those of its
// bytes: idle lanes and conflicts.
// memory: whether the spectrum that a block keeps is in device memory, not in registers.
//  X(name, q, p, a, b, s, threads, blocks, memory, waves)
#define FFT_FWD_VARIANTS(X)                                                                     \
  X("fft_14",  7,  2,  4,  1,  31,  64,  16, false, 3.0)  /* 7 K13 */                           \
  X("fft_20",  5,  4,  5,  1,  35,  64,  16, false, 2.2)  /* 12 K13, 10 K13 */                  \
  X("fft_28",  7,  4,  4,  1,  31,  128, 8,  false, 1.7)  /* 14 K27, 14 K13 */                  \
  X("fft_36",  9,  4,  5,  1,  55,  192, 5,  false, 1.8)  /* 20 K27 */                          \
  X("fft_42",  7,  6,  6,  1,  49,  160, 5,  false, 1.5)  /* 28 K29, 24 K27 */                  \
  X("fft_56",  7,  8,  9,  1,  69,  256, 3,  false, 1.4)  /* 40 K29, 28 K51 */                  \
  X("fft_63",  9,  7,  9,  1,  79,  288, 2,  false, 1.5)  /* 48 K29 */                          \
  X("fft_72",  9,  8,  8,  1,  77,  352, 2,  false, 1.25) /* 56 K31 */                          \
  X("fft_90",  9,  10, 10, 1,  91,  480, 1,  false, 1.25) /* 80 K19, 56 K51 */                          \
  X("fft_112", 16, 7,  1,  16, 113, 480, 2,  true,  1.05) /* 96 K31; larger by tiles */         \
  X("fft_144", 16, 9,  1,  16, 145, 672, 1,  true,  1.0)  /* 128 K31; larger by tiles */          \
  X("fft_176", 16, 11, 1,  16, 177, 736, 1,  true,  1.0)  /* 128 K63 */                           \
  X("fft_132", 12, 11, 1,  12, 133, 416, 2,  true,  1.1)  /* 64 K127, 96 K51 */

#define FFT_WEIGHT_VARIANTS(X)                                       \
  X("fft_14",  7,  2,  4,  1,  31,  64,  16, false, 3.0)             \
  X("fft_20",  5,  4,  5,  1,  35,  64,  16, false, 2.2)             \
  X("fft_28",  7,  4,  4,  1,  31,  128, 8,  false, 1.7)             \
  X("fft_36",  9,  4,  5,  1,  55,  192, 5,  false, 1.8)             \
  X("fft_42",  7,  6,  6,  1,  49,  160, 4,  false, 1.5)             \
  X("fft_56",  7,  8,  9,  1,  69,  256, 2,  false, 1.4)             \
  X("fft_63",  9,  7,  9,  1,  79,  288, 2,  false, 1.5)             \
  X("fft_72",  9,  8,  8,  1,  77,  256, 2,  true,  1.25)            \
  X("fft_90",  9,  10, 10, 1,  91,  480, 1,  false, 1.25)            \
  X("fft_112", 16, 7,  1,  16, 113, 480, 1,  false, 1.0)             \
  X("fft_144", 16, 9,  1,  16, 145, 384, 1,  true,  1.0)             \
  X("fft_132", 12, 11, 1,  12, 133, 480, 1,  true,  1.1)

namespace replknet_ext::cuda {


struct FftVariant {
  const char* name;
  int q, p, a, b, s, threads, blocks;
  bool memory;
  double waves;
};

#define FFT_ROW(name, q, p, a, b, s, threads, blocks, memory, waves) \
  {name, q, p, a, b, s, threads, blocks, memory, waves},
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
// Numbers of a spectrum that a block keeps in memory, idle threads' included
constexpr int64_t fft_spectrum(int q, int p, int threads) {
  return (fft_columns(q, p) * q + threads - 1) / threads * p * static_cast<int64_t>(threads);
}
REPLKNET_EXT_BOTH constexpr int fft_tables_bytes(int q, int p) { return (14 * q * p + 16 * p + 7) / 8 * 8; }

}  // namespace replknet_ext::cuda
