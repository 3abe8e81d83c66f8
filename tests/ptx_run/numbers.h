// Conversions between number formats, as the instructions round.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>

namespace ptx_run {

template <class To, class From>
To bits(From v) {
  static_assert(sizeof(To) == sizeof(From));
  To r;
  std::memcpy(&r, &v, sizeof r);
  return r;
}

inline float half_to_float(uint16_t h) {
  const uint32_t sign = (h & 0x8000u) << 16, exponent = h >> 10 & 31, fraction = h & 0x3ff;
  if (exponent == 31) return bits<float>(sign | 0x7f800000 | fraction << 13);
  if (exponent) return bits<float>(sign | (exponent + 112) << 23 | fraction << 13);
  const float v = static_cast<float>(fraction) * 0x1p-24f;
  return sign ? -v : v;
}
inline float bfloat_to_float(uint16_t b) { return bits<float>(static_cast<uint32_t>(b) << 16); }

inline uint16_t float_to_half(float f) {  // to nearest even
  const uint32_t u = bits<uint32_t>(f), sign = u >> 16 & 0x8000, a = u & 0x7fffffff;
  if (a > 0x7f800000) return 0x7fff;
  if (a >= 0x477ff000) return static_cast<uint16_t>(sign | 0x7c00);
  if (a < 0x38800000) {  // subnormal: adding 0.5 leaves the fraction in the low bits, rounded by the addition
    const float r = std::fabs(f) + 0.5f;
    return static_cast<uint16_t>(sign | (bits<uint32_t>(r) - 0x3f000000));
  }
  return static_cast<uint16_t>(sign | (a - 0x38000000 + 0xfff + (a >> 13 & 1)) >> 13);
}
inline uint16_t float_to_bfloat(float f) {
  const uint32_t u = bits<uint32_t>(f);
  if ((u & 0x7fffffff) > 0x7f800000) return 0x7fff;
  return static_cast<uint16_t>((u + 0x7fff + (u >> 16 & 1)) >> 16);
}
inline uint32_t float_to_tf32(float f) {  // ties away from zero
  const uint32_t u = bits<uint32_t>(f);
  if ((u & 0x7fffffff) > 0x7f800000) return 0x7fffffff;
  return (u & 0x7f800000) == 0x7f800000 ? u : (u + 0x1000) & 0xffffe000;
}
inline float flush(float f) { return std::fabs(f) < 0x1p-126f ? std::copysign(0.f, f) : f; }

}  // namespace ptx_run
