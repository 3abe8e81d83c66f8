// Integer division for host and device code.
#pragma once
#include <cstdint>
#include <type_traits>

#ifdef __CUDACC__
#define REPLKNET_EXT_BOTH __host__ __device__
#else
#define REPLKNET_EXT_BOTH
#endif

namespace replknet_ext {

// a / b rounded up, of a >= 0 and b > 0.
template <class A, class B>
REPLKNET_EXT_BOTH constexpr std::common_type_t<A, B> ceil_div(A a, B b) {
  return (a + b - 1) / b;
}

// a / b rounded down, of b > 0.
REPLKNET_EXT_BOTH constexpr int floor_div(int a, int b) { return a >= 0 ? a / b : -((-a + b - 1) / b); }

// Pairs of 0 <= i < rows and 0 <= j < columns with low <= i + j < high; exact below 2^53. What meets what on an axis is
// counted by it in a time that does not depend on the sizes.
inline double pairs_between(int64_t rows, int64_t columns, int64_t low, int64_t high) {
  const auto triangle = [](int64_t n) { return n > 0 ? static_cast<double>(n) * static_cast<double>(n + 1) / 2 : 0.0; };
  const auto below = [&](int64_t sum) {
    return triangle(sum) - triangle(sum - rows) - triangle(sum - columns) + triangle(sum - rows - columns);
  };
  return high > low ? below(high) - below(low) : 0;
}

}  // namespace replknet_ext
