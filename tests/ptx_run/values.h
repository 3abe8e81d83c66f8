// Data of a problem in float64: random numbers, rounding to a dtype, tensors in the memory that kernels see, the reference.
#pragma once
#include <vector>

#include "ptx.h"
#include "problem.h"

namespace ptx_run {

using namespace replknet_ext;

struct Random {
  uint64_t state;
  explicit Random(uint64_t seed) : state(seed * 0x9e3779b97f4a7c15 + 0x1234567) {
    for (int i = 0; i < 4; ++i) next();
  }
  uint64_t next() {
    state ^= state << 13, state ^= state >> 7, state ^= state << 17;
    return state * 0x2545f4914f6cdd1d >> 11;
  }
  int64_t upto(int64_t low, int64_t high) {
    return low + static_cast<int64_t>(next() % static_cast<uint64_t>(high - low + 1));
  }
  double uniform() { return static_cast<double>(next() % (1 << 24)) / (1 << 24); }
  double normal() {
    double s = 0;
    for (int i = 0; i < 12; ++i) s += uniform();
    return s - 6;
  }
};

inline int size_of(DType t) { return t == DType::f64 ? 8 : t == DType::f32 ? 4 : 2; }
// The nearest number of a type, ties to even; subnormal ones included.
double rounded(double v, DType t);
double ulp_of(double v, DType t);

struct Tensor {
  std::vector<unsigned char> memory;
  unsigned char* data = nullptr;
  DType dtype{};
  // Watched memory of `count` elements, `shift` of them off a 256-byte boundary.
  void allocate(int64_t count, DType t, int shift, const char* name, bool writable);
  void set(int64_t i, double v);
  double get(int64_t i) const;
};

using Values = std::vector<double>;
struct Result {
  Values out, scale, bias, bias_scale;  // scale: the same sums of absolute values
};
// What a problem computes, all NCHW. f: the filter, or of bwd_weight the output's gradient.
Result reference(const Problem& p, const Values& x, const Values& f, const Values* bias);

}  // namespace ptx_run
