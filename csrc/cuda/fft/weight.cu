#include "fft.cuh"
#include "args.h"

namespace replknet_ext::cuda {

FftKernel fft_weight(int variant) {
#define FFT_KERNEL(name, q, p, a, b, s, threads, blocks, memory, waves) \
  fft_weight_kernel<q, p, a, b, s, threads, blocks, memory>,
  static constexpr FftKernel kernels[] = {FFT_WEIGHT_VARIANTS(FFT_KERNEL)};
#undef FFT_KERNEL
  return kernels[variant];
}

}  // namespace replknet_ext::cuda
