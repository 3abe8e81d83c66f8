#include "fft.cuh"
#include "args.h"

namespace replknet_ext::cuda {

FftKernel fft_fwd(int variant) {
#define FFT_KERNEL(name, q, p, a, b, s, threads, blocks, memory, waves) \
  fft_fwd_kernel<q, p, a, b, s, threads, blocks, memory>,
  static constexpr FftKernel kernels[] = {FFT_FWD_VARIANTS(FFT_KERNEL)};
#undef FFT_KERNEL
  return kernels[variant];
}

}  // namespace replknet_ext::cuda
