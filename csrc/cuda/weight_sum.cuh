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

// 0 or a CUDA error.
int launch_weight_sum(const WeightSumArgs& a, void* stream);

}  // namespace replknet_ext::cuda
