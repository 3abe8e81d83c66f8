// The kernels behind the table of FFT variants; one file per pass, so that they compile side by side.
#pragma once
#include "args.h"

namespace replknet_ext::cuda {

using FftKernel = void (*)(FftArgs);
FftKernel fft_fwd(int variant);
FftKernel fft_weight(int variant);

}  // namespace replknet_ext::cuda
