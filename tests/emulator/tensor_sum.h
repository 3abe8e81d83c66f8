// How a tensor core adds: what the PTX manual leaves open ("at least single precision", no rounding mode named).
#pragma once
#include <cmath>

namespace emu {

// acc + the sum of n products, which are exact in double (of 11-bit or shorter mantissas). Tensor cores align all of them
// to the largest, cut off what lies below (two bits more than float32 has), add exactly, and cut off again: measured on
// V100 to H100 by Fasi et al. (2021) and Khattak and Mikaitis (2025). Where something is not finite, the usual sum.
inline float truncated_sum(float acc, const double* product, int n) {
  double largest = std::fabs(acc), plain = acc;
  for (int i = 0; i < n; ++i) {
    largest = std::fmax(largest, std::fabs(product[i]));
    plain += product[i];
  }
  if (!(largest > 0) || !std::isfinite(plain)) return static_cast<float>(plain);
  const double unit = std::ldexp(1.0, std::ilogb(largest) - 25);
  double sum = std::trunc(acc / unit);
  for (int i = 0; i < n; ++i) sum += std::trunc(product[i] / unit);  // of at most 30 bits: exact
  sum *= unit;
  const float result = static_cast<float>(sum);
  return std::fabs(static_cast<double>(result)) > std::fabs(sum) ? std::nextafterf(result, 0.f) : result;
}

}  // namespace emu
