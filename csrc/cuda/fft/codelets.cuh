// Small DFTs in registers. kSign -1: forward, +1: inverse, unscaled.
#pragma once
#include <utility>

#include "../ptx.cuh"

namespace replknet_ext::cuda {

struct alignas(8) Complex {
  float re, im;
};

__device__ __forceinline__ Complex operator+(Complex a, Complex b) { return {a.re + b.re, a.im + b.im}; }
__device__ __forceinline__ Complex operator-(Complex a, Complex b) { return {a.re - b.re, a.im - b.im}; }
__device__ __forceinline__ Complex times(Complex a, Complex b) {
  return {a.re * b.re - a.im * b.im, a.re * b.im + a.im * b.re};
}
__device__ __forceinline__ Complex conj(Complex a) { return {a.re, -a.im}; }
template <int kSign>
__device__ __forceinline__ Complex times_i(Complex a) {  // by i or -i
  return kSign > 0 ? Complex{-a.im, a.re} : Complex{a.im, -a.re};
}

// cos(2 pi k / n) and sin(2 pi k / n) when compiling: Taylor series on [-pi, pi]
__host__ __device__ constexpr double turn_cos(int k, int n, bool sine = false) {
  k = (k % n + n) % n;
  if (2 * k > n) k -= n;
  const double x = 6.283185307179586476925286766559 * k / n;
  double term = sine ? x : 1, sum = term;
  for (int i = sine ? 2 : 1; i < 40; i += 2) {
    term *= -x * x / (i * (i + 1.0));
    sum += term;
  }
  return sum;
}
__host__ __device__ constexpr double turn_sin(int k, int n) { return turn_cos(k, n, true); }

template <int kValue>
struct Index {
  __host__ __device__ constexpr operator int() const { return kValue; }
};

// f(Index<0>{}) ... f(Index<kN - 1>{}): an unrolled loop whose index is known when compiling
template <class F, int... kI>
__device__ __forceinline__ void each_of(const F& f, std::integer_sequence<int, kI...>) {
  (f(Index<kI>{}), ...);
}
template <int kN, class F>
__device__ __forceinline__ void each(const F& f) {
  each_of(f, std::make_integer_sequence<int, kN>{});
}

template <int kNumerator, int kTurn>
__device__ __forceinline__ Complex turned(Complex a) {  // a e^(2 pi i kNumerator / kTurn)
  constexpr int k = (kNumerator % kTurn + kTurn) % kTurn;
  if constexpr (k == 0) return a;
  else if constexpr (4 * k == kTurn) return times_i<1>(a);
  else if constexpr (4 * k == 3 * kTurn) return times_i<-1>(a);
  else {
    constexpr float c = static_cast<float>(turn_cos(k, kTurn)), s = static_cast<float>(turn_sin(k, kTurn));
    if constexpr (8 * k % kTurn == 0) {  // c = +-s
      constexpr float both = c * s > 0 ? 1.f : -1.f;
      return {c * (a.re - both * a.im), s * (a.re + both * a.im)};
    } else {
      return {c * a.re - s * a.im, s * a.re + c * a.im};
    }
  }
}

template <int kN, int kSign>
__device__ __forceinline__ void dft(Complex (&v)[kN]);

// The number below kA kB that is a mod kA and b mod kB
template <int kA, int kB>
__host__ __device__ constexpr int joined(int a, int b) {
  int n = a;
  while (n % kB != b) n += kA;
  return n;
}

// kN = kA kB, coprime: places and frequencies stand at their residues, so there are no twiddles. The order of the
// frequencies is not the usual one; negation and convolution, all that is needed, are as usual.
template <int kA, int kB, int kSign>
__device__ __forceinline__ void dft_coprime(Complex (&v)[kA * kB]) {
  each<kB>([&](auto b) {
    Complex t[kA];
    each<kA>([&](auto a) { constexpr int n = joined<kA, kB>(a, b);
      t[a] = v[n]; });
    dft<kA, kSign>(t);
    each<kA>([&](auto a) { constexpr int n = joined<kA, kB>(a, b);
      v[n] = t[a]; });
  });
  each<kA>([&](auto a) {
    Complex t[kB];
    each<kB>([&](auto b) { constexpr int n = joined<kA, kB>(a, b);
      t[b] = v[n]; });
    dft<kB, kSign>(t);
    each<kB>([&](auto b) { constexpr int n = joined<kA, kB>(a, b);
      v[n] = t[b]; });
  });
}

// kN = kA kB by Cooley and Tukey
template <int kA, int kB, int kSign>
__device__ __forceinline__ void dft_twiddled(Complex (&v)[kA * kB]) {
  Complex t[kA][kB];  // [k1][b]
  each<kB>([&](auto b) {
    Complex u[kA];
    each<kA>([&](auto a) { u[a] = v[kB * a + b]; });
    dft<kA, kSign>(u);
    each<kA>([&](auto k) { t[k][b] = turned<kSign * k * b, kA * kB>(u[k]); });
  });
  each<kA>([&](auto k) {
    dft<kB, kSign>(t[k]);
    each<kB>([&](auto m) { v[k + kA * m] = t[k][m]; });
  });
}

template <int kN, int kSign>
__device__ __forceinline__ void dft_odd(Complex (&v)[kN]) {  // odd primes: sums and differences of mirrored places
  constexpr int kHalf = kN / 2;
  Complex sum[kHalf], difference[kHalf];
  each<kHalf>([&](auto j) {
    sum[j] = v[j + 1] + v[kN - 1 - j];
    difference[j] = v[j + 1] - v[kN - 1 - j];
  });
  const Complex first = v[0];
  each<kHalf>([&](auto j) { v[0] = v[0] + sum[j]; });
  each<kHalf>([&](auto k) {
    Complex even = first, odd{0.f, 0.f};
    each<kHalf>([&](auto j) {
      constexpr float c = static_cast<float>(turn_cos((j + 1) * (k + 1), kN));
      constexpr float s = static_cast<float>(kSign * turn_sin((j + 1) * (k + 1), kN));
      even.re += c * sum[j].re, even.im += c * sum[j].im;
      if constexpr (j == 0) odd = {s * difference[0].re, s * difference[0].im};
      else odd.re += s * difference[j].re, odd.im += s * difference[j].im;
    });
    v[k + 1] = {even.re - odd.im, even.im + odd.re};
    v[kN - 1 - k] = {even.re + odd.im, even.im - odd.re};
  });
}

template <int kN, int kSign>
__device__ __forceinline__ void dft(Complex (&v)[kN]) {
  if constexpr (kN == 2) {
    const Complex a = v[0];
    v[0] = a + v[1], v[1] = a - v[1];
  } else if constexpr (kN == 4) {
    const Complex a = v[0] + v[2], b = v[0] - v[2], c = v[1] + v[3], d = times_i<kSign>(v[1] - v[3]);
    v[0] = a + c, v[1] = b + d, v[2] = a - c, v[3] = b - d;
  } else if constexpr (kN == 8) {
    dft_twiddled<2, 4, kSign>(v);
  } else if constexpr (kN == 9) {
    dft_twiddled<3, 3, kSign>(v);
  } else if constexpr (kN == 16) {
    dft_twiddled<4, 4, kSign>(v);
  } else if constexpr (kN == 6) {
    dft_coprime<2, 3, kSign>(v);
  } else if constexpr (kN == 12) {
    dft_coprime<4, 3, kSign>(v);
  } else if constexpr (kN == 10) {
    dft_coprime<2, 5, kSign>(v);
  } else {
    static_assert(kN == 3 || kN == 5 || kN == 7 || kN == 11 || kN == 13);
    dft_odd<kN, kSign>(v);
  }
}

}  // namespace replknet_ext::cuda
