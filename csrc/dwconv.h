// What every backend agrees on: one depthwise cross-correlation with stride 1, free of torch.
#pragma once
#include <cstdint>

namespace replknet_ext {

enum class DType { f64, f32, f16, bf16 };
enum class Activation { none, relu, gelu };

// out[n, c, y, x] = act(bias[c] + sum over (i, j) of in[n, c, y + i - pad_top, x + j - pad_left] * filter[c, i, j])
// with zeros outside the input. Pads may be negative (a crop): bwd_input of a conv padded by more than K - 1 needs it.
struct Problem {
  int64_t n, c, h, w;  // input planes
  int64_t kh, kw;      // filter
  int64_t ho, wo;      // output planes: ho = h + pad_top + pad_bottom - kh + 1
  int64_t pad_top, pad_left;
  DType dtype;
  bool channels_last;  // input and output are [n, h, w, c] in memory, else [n, c, h, w]
  bool flip;           // filter rotated by 180 degrees: makes fwd the kernel of bwd_input
  Activation activation;
};

}  // namespace replknet_ext
