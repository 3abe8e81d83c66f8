#include "fft.cuh"
#include "fft_kernels.h"

namespace replknet_ext::cuda {
namespace {

__device__ __forceinline__ void store_result(void* to, int64_t i, float v, FftDType dtype) {
  fft_by_dtype(dtype, [&](auto type) { fft_write<type>(to, i, v); });
}

// The sum over the splits, in their order.
__global__ void __launch_bounds__(256) fft_reduce_kernel(const __grid_constant__ FftReduceArgs a) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * 256 + threadIdx.x;
  if (i < a.elements) {
    float sum = a.partial[i];
    for (int s = 1; s < a.splits; ++s) sum += a.partial[s * a.elements + i];
    store_result(a.out, i, sum, a.dtype);
  }
  if (a.grad_bias && i < a.channels) {
    float sum = a.partial_bias[i];
    for (int s = 1; s < a.splits; ++s) sum += a.partial_bias[s * static_cast<int64_t>(a.channels) + i];
    store_result(a.grad_bias, i, sum, a.dtype);
  }
}
}  // namespace

FftKernel fft_weight(int variant) {
#define FFT_KERNEL(name, q, p, a, b, s, threads, blocks, memory, waves) \
  fft_weight_kernel<q, p, a, b, s, threads, blocks, memory>,
  static constexpr FftKernel kernels[] = {FFT_WEIGHT_VARIANTS(FFT_KERNEL)};
#undef FFT_KERNEL
  return kernels[variant];
}

FftReduceKernel fft_reduce() { return fft_reduce_kernel; }

}  // namespace replknet_ext::cuda
