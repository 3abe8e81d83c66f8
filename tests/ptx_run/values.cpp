// See values.h. The conversions here are apart from those of the instructions (numbers.h), which they check.
#include "values.h"

#include <algorithm>
#include <cmath>

namespace ptx_run {
namespace {

int fraction_bits(DType t) { return t == DType::f64 ? 52 : t == DType::f32 ? 23 : t == DType::f16 ? 10 : 7; }

uint16_t to_half(double v) {  // of a number that float16 holds
  if (v == 0) return 0;
  if (!std::isfinite(v)) return std::isnan(v) ? 0x7e00 : v < 0 ? 0xfc00 : 0x7c00;
  const uint16_t sign = v < 0 ? 0x8000 : 0;
  const double a = std::fabs(v);
  const int e = std::max(std::ilogb(a), -14);
  const int f = static_cast<int>(std::ldexp(a, 10 - e));
  return static_cast<uint16_t>(sign | (f < 1024 ? f : (e + 15) << 10 | (f - 1024)));
}
double from_half(uint16_t h) {
  const int e = h >> 10 & 31, f = h & 1023;
  const double v = e == 31 ? (f ? NAN : INFINITY) : e ? std::ldexp(1024 + f, e - 25) : std::ldexp(f, -24);
  return h & 0x8000 ? -v : v;
}

}  // namespace

double rounded(double v, DType t) {
  if (t == DType::f64 || v == 0 || !std::isfinite(v)) return v;
  const int least = t == DType::f16 ? -14 : -126;
  const double ulp = std::ldexp(1.0, std::max(std::ilogb(v), least) - fraction_bits(t));
  const double r = std::nearbyint(v / ulp) * ulp;
  return std::fabs(r) > (t == DType::f16    ? 65504.0
                         : t == DType::bf16 ? 0x1.fep127
                                            : 0x1.fffffep127)
             ? std::copysign(INFINITY, v)
             : r;
}
double ulp_of(double v, DType t) {
  const int least = t == DType::f16 ? -14 : t == DType::f64 ? -1022 : -126;
  return std::ldexp(1.0, std::max(v == 0 ? least : std::ilogb(v), least) - fraction_bits(t));
}

void Tensor::allocate(int64_t count, DType t, int shift, const char* name, bool writable) {
  dtype = t;
  const auto bytes = static_cast<size_t>(count * size_of(t));
  memory.assign(bytes + 1024, 0xff);
  const auto at = reinterpret_cast<uintptr_t>(memory.data());
  data = memory.data() + ((at + 511) / 256 * 256 - at) + static_cast<size_t>(shift * size_of(t));
  watch(data, bytes, writable, name);
}
void Tensor::set(int64_t i, double v) {
  if (dtype == DType::f64) return static_cast<void>(std::memcpy(data + 8 * i, &v, 8));
  const float f = static_cast<float>(v);
  uint32_t u;
  std::memcpy(&u, &f, 4);
  if (dtype == DType::f32) return static_cast<void>(std::memcpy(data + 4 * i, &f, 4));
  const uint16_t h = dtype == DType::f16 ? to_half(v) : static_cast<uint16_t>(u >> 16);
  std::memcpy(data + 2 * i, &h, 2);
}
double Tensor::get(int64_t i) const {
  double d;
  float f;
  uint16_t h;
  if (dtype == DType::f64) return std::memcpy(&d, data + 8 * i, 8), d;
  if (dtype == DType::f32) return std::memcpy(&f, data + 4 * i, 4), static_cast<double>(f);
  std::memcpy(&h, data + 2 * i, 2);
  if (dtype == DType::f16) return from_half(h);
  const uint32_t u = static_cast<uint32_t>(h) << 16;
  return std::memcpy(&f, &u, 4), static_cast<double>(f);
}

Result reference(const Problem& p, const Values& x, const Values& f, const Values* bias) {
  Result r;
  const bool weight = p.pass == Pass::bwd_weight;
  const int64_t planes = p.n * p.c;
  r.out.assign(static_cast<size_t>(weight ? p.c * p.kh * p.kw : planes * p.ho * p.wo), 0);
  r.scale = r.out;
  if (weight) r.bias.assign(static_cast<size_t>(p.c), 0), r.bias_scale = r.bias;
  for (int64_t plane = 0; plane < planes; ++plane) {
    const int64_t c = plane % p.c;
    const double* in = &x[static_cast<size_t>(plane * p.h * p.w)];
    for (int64_t i = 0; i < p.kh; ++i)
      for (int64_t j = 0; j < p.kw; ++j) {
        const int64_t tap = weight ? 0 : p.flip ? (p.kh - 1 - i) * p.kw + p.kw - 1 - j : i * p.kw + j;
        const double w = weight ? 0 : f[static_cast<size_t>(c * p.kh * p.kw + tap)];
        double sum = 0, scale = 0;
        for (int64_t y = std::max<int64_t>(0, p.pad_top - i); y < std::min(p.ho, p.h + p.pad_top - i); ++y) {
          const double* row = in + (y + i - p.pad_top) * p.w + j - p.pad_left;
          const int64_t first = std::max<int64_t>(0, p.pad_left - j), end = std::min(p.wo, p.w + p.pad_left - j);
          if (weight) {
            const double* g = &f[static_cast<size_t>((plane * p.ho + y) * p.wo)];
            for (int64_t k = first; k < end; ++k) sum += row[k] * g[k], scale += std::fabs(row[k] * g[k]);
          } else {
            double *o = &r.out[static_cast<size_t>((plane * p.ho + y) * p.wo)],
                   *s = &r.scale[static_cast<size_t>((plane * p.ho + y) * p.wo)];
            for (int64_t k = first; k < end; ++k) o[k] += row[k] * w, s[k] += std::fabs(row[k] * w);
          }
        }
        if (weight) {
          const auto at = static_cast<size_t>((c * p.kh + i) * p.kw + j);
          r.out[at] += sum, r.scale[at] += scale;
        }
      }
    const int64_t outputs = p.ho * p.wo;
    for (int64_t k = 0; k < outputs; ++k) {
      const auto at = static_cast<size_t>(plane * outputs + k);
      if (weight) {
        r.bias[static_cast<size_t>(c)] += f[at], r.bias_scale[static_cast<size_t>(c)] += std::fabs(f[at]);
        continue;
      }
      double& v = r.out[at];
      if (bias) v += (*bias)[static_cast<size_t>(c)], r.scale[at] += std::fabs((*bias)[static_cast<size_t>(c)]);
      if (p.activation == Activation::relu) v = v < 0 ? 0 : v;
      if (p.activation == Activation::gelu) v *= 0.5 * std::erfc(-v * M_SQRT1_2);
    }
  }
  return r;
}

}  // namespace ptx_run
