// What every backend agrees on: one depthwise cross-correlation with stride 1, free of torch.
#pragma once
#include <cstdint>

namespace replknet_ext {

enum class DType { f64, f32, f16, bf16 };
enum class Activation { none, relu, gelu };
enum class Pass { fwd, bwd_weight };  // bwd_input is fwd with the filter flipped
// What float32 operands may be rounded to; sums are float32 always. A kernel that is more exact than asked may run.
enum class Precision { ieee, tf32, bf16x3 };
enum class Algorithm { automatic, direct, fft };

// out[n, c, y, x] = act(bias[c] + sum over (i, j) of in[n, c, y + i - pad_top, x + j - pad_left] * filter[c, i, j])
// with zeros outside the input. Pads may be negative (a crop): bwd_input of a conv padded by more than K - 1 needs it.
// bwd_weight has the sizes of the conv that it belongs to: out and in are given, the gradient of filter is wanted.
struct Problem {
  int64_t n, c, h, w;  // input planes
  int64_t kh, kw;      // filter
  int64_t ho, wo;      // output planes: ho = h + pad_top + pad_bottom - kh + 1
  int64_t pad_top, pad_left;
  DType dtype;
  bool channels_last;  // input and output are [n, h, w, c] in memory, else [n, c, h, w]; filters are [c, kh, kw]
  bool flip;           // filter rotated by 180 degrees: makes fwd the kernel of bwd_input
  Activation activation;
  Pass pass = Pass::fwd;
  Precision precision = Precision::ieee;
  Algorithm algorithm = Algorithm::automatic;
};

}  // namespace replknet_ext
