// How many multiply-adds this CPU does when nothing else holds it up: independent chains of vector FMAs in registers.
// Built and called by cpu_peak.py; no dependencies.
#include <cstdint>
#include <thread>
#include <vector>

namespace {

typedef float V16 __attribute__((vector_size(16)));
typedef float V32 __attribute__((vector_size(32)));
typedef float V64 __attribute__((vector_size(64)));

// Two pipes with a latency of 4 need 8 chains. 24 accumulators and 2 operands fit AVX-512's 32 registers, 12 and 2 the
// 16 of the others.
template <class V, int chains>
[[gnu::always_inline]] inline float spin(int64_t steps, float scale, float shift) {
  const V a = V{} + scale, b = V{} + shift;
  V acc[chains];
  for (int i = 0; i < chains; i++) acc[i] = V{} + static_cast<float>(i);
  for (int64_t step = 0; step < steps; step++) {
#pragma GCC unroll 32
    for (int i = 0; i < chains; i++) acc[i] = acc[i] * a + b;
  }
  V sum{};
  for (int i = 0; i < chains; i++) sum += acc[i];
  float total = 0;
  for (unsigned i = 0; i < sizeof(V) / sizeof(float); i++) total += sum[i];
  return total;
}

struct Kernel { float (*run)(int64_t, float, float); int flop; };  // of a step

float base(int64_t steps, float scale, float shift) { return spin<V16, 12>(steps, scale, shift); }
#if defined(__x86_64__)
__attribute__((target("avx2,fma"))) float avx2(int64_t steps, float scale, float shift) {
  return spin<V32, 12>(steps, scale, shift);
}
__attribute__((target("avx512f,avx512vl,fma"))) float avx512(int64_t steps, float scale, float shift) {
  return spin<V64, 24>(steps, scale, shift);
}
#endif

Kernel kernel(int vector_bytes) {
#if defined(__x86_64__)
  if (vector_bytes == 64) return {avx512, 2 * 24 * 16};
  if (vector_bytes == 32) return {avx2, 2 * 12 * 8};
#endif
  return {base, 2 * 12 * 4};
}

}  // namespace

// Runs `steps` steps on each of `threads` threads; the floating-point operations done. The caller takes the time.
extern "C" double fma_peak(int vector_bytes, int threads, int64_t steps) {
  const Kernel k = kernel(vector_bytes);
  std::vector<float> results(threads);
  std::vector<std::thread> helpers;
  const auto work = [&](int i) { results[i] = k.run(steps, 0.5f, 1.0f); };
  for (int i = 1; i < threads; i++) helpers.emplace_back(work, i);
  work(0);
  for (std::thread& helper : helpers) helper.join();
  volatile float keep = 0;
  for (const float result : results) keep = keep + result;
  return double(k.flop) * steps * threads;
}
