// The kernels behind the variants table; one file a type, so that they compile side by side.
#pragma once
#include "args.h"

namespace replknet_ext::cuda {

using StencilKernel = void (*)(StencilArgs);
StencilKernel stencil_half(bool weight, int kernel);
StencilKernel stencil_f32(bool weight, int kernel);

}  // namespace replknet_ext::cuda
