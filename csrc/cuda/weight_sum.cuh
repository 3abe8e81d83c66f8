// The second launch of a bwd_weight that is split over blocks: adds their partial sums in a fixed order.
#pragma once
#include "ptx.cuh"

namespace replknet_ext::cuda {

struct WeightSumArgs {
  const float* partial;  // [split][c][taps + 1]: the filter's gradient, then the bias'
  void *out, *grad_bias;  // grad_bias may be null
  int64_t total;  // c * (taps + 1)
  int taps, splits, dtype;  // dtype 0: float32, 1: fp16, 2: bf16
};

__device__ __forceinline__ void store_result(void* to, int64_t i, float v, int dtype) {
  if (dtype == 0) static_cast<float*>(to)[i] = v;
  else static_cast<uint16_t*>(to)[i] = dtype == 1 ? ptx::from_float<false>(v) : ptx::from_float<true>(v);
}

// One thread a tap; the splits in order.
static __global__ void __launch_bounds__(256) weight_sum(const __grid_constant__ WeightSumArgs a) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * 256 + threadIdx.x;
  if (i >= a.total) return;
  const int64_t channel = i / (a.taps + 1);
  const int tap = static_cast<int>(i - channel * (a.taps + 1));
  if (tap == a.taps && !a.grad_bias) return;
  float v = a.partial[i];
  for (int s = 1; s < a.splits; ++s) v += a.partial[s * a.total + i];
  if (tap == a.taps) store_result(a.grad_bias, channel, v, a.dtype);
  else store_result(a.out, channel * a.taps + tap, v, a.dtype);
}

inline int launch_weight_sum(const WeightSumArgs& a, void* stream) {
  const dim3 grid(static_cast<unsigned>((a.total + 255) / 256));
  return static_cast<int>(launch_kernel(&weight_sum, grid, dim3(256), 0, stream, a));
}

}  // namespace replknet_ext::cuda
