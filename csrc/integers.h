// Integer division for host and device code.
#pragma once
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

}  // namespace replknet_ext
