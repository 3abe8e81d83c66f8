// The activations that the forward kernels apply before they store.
#pragma once
#include "ptx.cuh"

namespace replknet_ext::cuda {

// activation: Activation as a number.
template <class T>
__device__ __forceinline__ T activate(T v, int activation) {
  if (activation == 1) return v > T(0) || v != v ? v : T(0);  // relu keeps NaN, as torch does
  if (activation == 2) {                                      // gelu by erf
    if constexpr (sizeof(T) == 8) return 0.5 * v * (1. + erf(v * 0.70710678118654752440));
    else return 0.5f * v * (1.f + erff(v * 0.70710678118654752f));
  }
  return v;
}

}  // namespace replknet_ext::cuda
