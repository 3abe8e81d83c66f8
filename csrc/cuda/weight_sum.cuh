// The second launch of a bwd_weight that is split over blocks: adds their partial sums in a fixed order.
#pragma once
#include "ptx.cuh"

namespace replknet_ext::cuda {

// Sums of the filter's gradient, and of the bias' if grad_bias: those of a split lie `split` (`bias_split`) elements after
// those of the split before, those of a channel `channel` (`bias_channel`) after those of the channel before.
struct WeightSumArgs {
  const void *partial, *partial_bias;  // double where dtype is, else float
  void *out, *grad_bias;               // [c][taps] and, or null, [c]
  int64_t taps, split, channel, bias_split, bias_channel;
  int c, splits, dtype;  // dtype 0: float32, 1: fp16, 2: bf16, 3: float64
};

// [split][c][taps + 1]: of a channel the filter's, then the bias'.
inline WeightSumArgs sums_by_channel(const float* partial, void* out, void* grad_bias, int64_t c, int64_t taps, int splits,
                                     int dtype) {
  const int64_t all = c * (taps + 1);
  return {partial, partial + taps, out, grad_bias, taps, all, taps + 1, all, taps + 1, static_cast<int>(c), splits, dtype};
}
// [split][c][taps], then [split][c]: all of the filter's, then all of the bias'.
inline WeightSumArgs sums_apart(const void* partial, const void* partial_bias, void* out, void* grad_bias, int64_t c,
                                int64_t taps, int splits, int dtype) {
  return {partial, partial_bias, out, grad_bias, taps, c * taps, taps, c, 1, static_cast<int>(c), splits, dtype};
}

__device__ __forceinline__ void store_result(void* to, int64_t i, float v, int dtype) {
  if (dtype == 0) static_cast<float*>(to)[i] = v;
  else static_cast<uint16_t*>(to)[i] = dtype == 1 ? ptx::from_float<false>(v) : ptx::from_float<true>(v);
}
__device__ __forceinline__ void store_result(void* to, int64_t i, double v, int) { static_cast<double*>(to)[i] = v; }

// 0 or a CUDA error.
int launch_weight_sum(const WeightSumArgs& a, void* stream);

// A kernel that stands for all, as every file is compiled for the same architectures.
const void* any_kernel();

}  // namespace replknet_ext::cuda
