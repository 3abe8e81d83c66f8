// Register-only rates: mma.sync in bf16 and tf32, and fused multiply-adds. No memory is read, so what these reach is what
// the issue slots and the tensor cores give. Built by gpu_steps.py as a shared library.
#include <cstdint>
#include <cuda_runtime.h>

namespace {

constexpr int kThreads = 256, kChains = 8, kLanes = 16;

// Random bits, because multipliers that see constant data draw less power and clock higher.
__device__ uint32_t noise(uint32_t x) {
  x ^= x >> 16, x *= 0x7feb352du, x ^= x >> 15, x *= 0x846ca68bu;
  return x ^ x >> 16;
}

// Two bf16 of magnitude 1 to 2, either sign.
__device__ uint32_t bf16_pair(uint32_t x) { return (noise(x) & 0x807f807fu) | 0x3f803f80u; }
__device__ uint32_t tf32_value(uint32_t x) { return (noise(x) & 0x807fe000u) | 0x3f800000u; }

__device__ void mma_bf16(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
               : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

__device__ void mma_tf32(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
               : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// A warp keeps kChains independent sums, so that latency is hidden from one or two warps a scheduler on.
template <bool kBf16>
__global__ void __launch_bounds__(kThreads) mma_rate(int rounds, float* out, long long* cycles) {
  const uint32_t seed = (blockIdx.x * kThreads + threadIdx.x) * 64;
  float c[kChains][4] = {};
  uint32_t a[4], b[2];
  for (int i = 0; i < 4; ++i) a[i] = kBf16 ? bf16_pair(seed + i) : tf32_value(seed + i);
  for (int i = 0; i < 2; ++i) b[i] = kBf16 ? bf16_pair(seed + 8 + i) : tf32_value(seed + 8 + i);
  __syncthreads();
  const long long start = clock64();
  for (int r = 0; r < rounds; ++r)
#pragma unroll
    for (int i = 0; i < kChains; ++i) kBf16 ? mma_bf16(c[i], a, b) : mma_tf32(c[i], a, b);
  __syncthreads();
  if (threadIdx.x == 0) cycles[blockIdx.x] = clock64() - start;
  float sum = 0;
  for (int i = 0; i < kChains; ++i)
    for (int j = 0; j < 4; ++j) sum += c[i][j];
  out[blockIdx.x * kThreads + threadIdx.x] = sum;
}

__global__ void __launch_bounds__(kThreads) fma_rate(int rounds, float* out, long long* cycles) {
  const uint32_t seed = (blockIdx.x * kThreads + threadIdx.x) * 64;
  const float scale = __uint_as_float((noise(seed) & 0x007fffffu) | 0x3f000000u), shift = 0.25f;  // 0.5 to 1: no overflow
  float c[kLanes];
  for (int i = 0; i < kLanes; ++i) c[i] = __uint_as_float((noise(seed + i) & 0x807fffffu) | 0x3f800000u);
  __syncthreads();
  const long long start = clock64();
  for (int r = 0; r < rounds; ++r)
#pragma unroll
    for (int i = 0; i < kLanes; ++i) c[i] = fmaf(c[i], scale, shift);
  __syncthreads();
  if (threadIdx.x == 0) cycles[blockIdx.x] = clock64() - start;
  float sum = 0;
  for (int i = 0; i < kLanes; ++i) sum += c[i];
  out[blockIdx.x * kThreads + threadIdx.x] = sum;
}

}  // namespace

// kind: 0 bf16, 1 tf32, 2 fp32. out: blocks * 256 floats; cycles: one per block. A block issues, each round, 8 warps * 8
// tensor instructions, or 256 threads * 16 fused multiply-adds. Returns a CUDA error.
extern "C" int peak(int kind, int blocks, int rounds, float* out, long long* cycles, void* stream) {
  const auto s = static_cast<cudaStream_t>(stream);
  if (kind == 0)
    mma_rate<true><<<blocks, kThreads, 0, s>>>(rounds, out, cycles);
  else if (kind == 1)
    mma_rate<false><<<blocks, kThreads, 0, s>>>(rounds, out, cycles);
  else
    fma_rate<<<blocks, kThreads, 0, s>>>(rounds, out, cycles);
  return cudaGetLastError();
}
