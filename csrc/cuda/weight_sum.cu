#include "weight_sum.cuh"

namespace replknet_ext::cuda {
namespace {

// One thread per tap or bias; adds the splits in their order.
template <class T>
__global__ void __launch_bounds__(256) weight_sum(const __grid_constant__ WeightSumArgs a) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * 256 + threadIdx.x, taps = a.c * a.taps;
  const bool is_bias = i >= taps;
  if (i >= taps + (a.grad_bias ? a.c : 0)) return;
  const int64_t channel = is_bias ? i - taps : i / a.taps;
  const int64_t at = is_bias ? channel * a.bias_channel : channel * a.channel + i - channel * a.taps;
  const int64_t split = is_bias ? a.bias_split : a.split;
  const T* from = static_cast<const T*>(is_bias ? a.partial_bias : a.partial) + at;
  T sum = from[0];
  for (int s = 1; s < a.splits; ++s) sum += from[s * split];
  if (is_bias) store_result(a.grad_bias, channel, sum, a.dtype);
  else store_result(a.out, i, sum, a.dtype);
}
}  // namespace

int launch_weight_sum(const WeightSumArgs& a, void* stream) {
  const int64_t sums = a.c * a.taps + (a.grad_bias ? a.c : 0);
  const dim3 grid(static_cast<unsigned>((sums + 255) / 256));
  return static_cast<int>(launch_kernel(a.dtype == 3 ? &weight_sum<double> : &weight_sum<float>, grid, dim3(256), 0, stream, a));
}

const void* any_kernel() { return reinterpret_cast<const void*>(&weight_sum<float>); }

}  // namespace replknet_ext::cuda
