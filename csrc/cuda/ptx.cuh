// The only file with PTX (but hopper.cuh: what sm_90a alone has), and the only one that knows which compiler reads it: every
// wrapper has a device body (nvcc) and a body for the emulator of tests/emulator (g++), so that kernel files compile
// unchanged with both.
#pragma once
#include <cstdint>
#ifdef __CUDACC__
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#define DYN_SMEM(name) extern __shared__ __align__(128) unsigned char name[]
#define PTX __device__ __forceinline__
#else
#include "emulator.h"
#define PTX inline
#endif

namespace ptx {

#ifdef __CUDACC__
PTX uint32_t shared_address(const void* p) { return static_cast<uint32_t>(__cvta_generic_to_shared(p)); }
#endif

// Asynchronous copy of 4, 8 or 16 bytes, global -> shared; both addresses are multiples of its size. 16 bytes bypass L1.
template <int kBytes>
PTX void cp_async(void* dst, const void* src) {
#ifdef __CUDACC__
  if constexpr (kBytes == 16)
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;\n" ::"r"(shared_address(dst)), "l"(src) : "memory");
  else
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2;\n" ::"r"(shared_address(dst)), "l"(src), "n"(kBytes)
                 : "memory");
#else
  emu::cp_async(dst, src, kBytes);
#endif
}

PTX void cp_async_commit() {
#ifdef __CUDACC__
  asm volatile("cp.async.commit_group;\n" ::: "memory");
#else
  emu::cp_commit();
#endif
}

template <int kGroupsLeft>
PTX void cp_async_wait() {
#ifdef __CUDACC__
  asm volatile("cp.async.wait_group %0;\n" ::"n"(kGroupsLeft) : "memory");
#else
  emu::cp_wait(kGroupsLeft);
#endif
}

// Asks for the 128-byte line at p to be brought into the L2 cache; only a hint.
PTX void prefetch_l2(const void* p) {
#ifdef __CUDACC__
  asm volatile("prefetch.global.L2 [%0];\n" ::"l"(p));
#else
  (void)p;
#endif
}

// 16 bytes of shared memory. Plain C++ on the device; a wrapper so that the emulator sees one access, not four.
PTX uint4 load_shared(const uint4* p) {
#ifdef __CUDACC__
  return *p;
#else
  uint4 v;
  emu::load_shared(&v, p, sizeof v);
  return v;
#endif
}

PTX void store_shared(uint4* p, uint4 v) {
#ifdef __CUDACC__
  *p = v;
#else
  emu::store_shared(p, &v, sizeof v);
#endif
}

// Memory that nothing writes while the kernel runs: such loads may leave before earlier stores.
template <class T>
PTX T load_global(const T* p) {
#ifdef __CUDACC__
  return __ldg(p);
#else
  emu::require_aligned(p, sizeof(T));
  return *p;
#endif
}

template <class T>
PTX void store_global(T* p, T v) {
#ifndef __CUDACC__
  emu::require_aligned(p, sizeof(T));
#endif
  *p = v;
}

// Four elements of shared memory, aligned to 16 bytes.
template <class T>
struct alignas(16) Quad {
  T v[4];
};

template <class T>
PTX Quad<T> load_quad(const T* p) {
  Quad<T> q;
#ifdef __CUDACC__
  if constexpr (sizeof(T) == 4) {
    const float4 a = *reinterpret_cast<const float4*>(p);
    q.v[0] = a.x, q.v[1] = a.y, q.v[2] = a.z, q.v[3] = a.w;
  } else {
    const double2 a = *reinterpret_cast<const double2*>(p), b = *reinterpret_cast<const double2*>(p + 2);
    q.v[0] = a.x, q.v[1] = a.y, q.v[2] = b.x, q.v[3] = b.y;
  }
#else
  for (size_t i = 0; i < 4; i += 16 / sizeof(T)) emu::load_shared(&q.v[i], p + i, 16);
#endif
  return q;
}

// Up to 4 elements to global memory, stride apart; vec 4: one store may take 4 neighbours.
template <class T>
PTX void store_quad(T* to, const T (&v)[4], int64_t stride, int count, int vec) {
  if (vec == 4 && count >= 4) {
#ifndef __CUDACC__
    emu::require_aligned(to, 16);
#endif
    *reinterpret_cast<Quad<T>*>(to) = {v[0], v[1], v[2], v[3]};
    return;
  }
#pragma unroll
  for (int i = 0; i < 4; ++i)
    if (i < count) to[i * stride] = v[i];
}

// a * b + c with one rounding
PTX float fused(float a, float b, float c) { return fmaf(a, b, c); }
PTX double fused(double a, double b, double c) { return fma(a, b, c); }

// The value of lane 0: tells the compiler that a warp agrees on it.
PTX int uniform(int v) { return __shfl_sync(~0u, v, 0); }

template <class T>
PTX T shuffle_xor(T v, int mask) {
#ifdef __CUDACC__
  return __shfl_xor_sync(~0u, v, mask);
#else
  int words[sizeof(T) / 4];
  std::memcpy(words, &v, sizeof v);
  for (int& word : words) word = __shfl_xor_sync(~0u, word, mask);
  std::memcpy(&v, words, sizeof v);
  return v;
#endif
}

// The same for 8 bytes of any 8-byte aligned type
template <class T>
PTX T load_shared8(const T* p) {
  static_assert(sizeof(T) == 8 && alignof(T) == 8);
#ifdef __CUDACC__
  return *p;
#else
  T v;
  emu::load_shared(&v, p, sizeof v);
  return v;
#endif
}

template <class T>
PTX void store_shared8(T* p, T v) {
  static_assert(sizeof(T) == 8 && alignof(T) == 8);
#ifdef __CUDACC__
  *p = v;
#else
  emu::store_shared(p, &v, sizeof v);
#endif
}

// r[i] <- the lane's two elements of 8x8 matrix i of 16-bit elements; lane 8i + j passes the address of its row j.
PTX void ldmatrix_x4(uint32_t* r, const void* row) {
#ifdef __CUDACC__
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];\n"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row))
               : "memory");
#else
  emu::ldmatrix(r, row, 4, false);
#endif
}

PTX void ldmatrix_x2(uint32_t* r, const void* row) {  // the addresses of lanes 16 to 31 are not used
#ifdef __CUDACC__
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0,%1}, [%2];\n"
               : "=r"(r[0]), "=r"(r[1])
               : "r"(shared_address(row))
               : "memory");
#else
  emu::ldmatrix(r, row, 2, false);
#endif
}

// As above, each matrix transposed.
PTX void ldmatrix_x4_trans(uint32_t* r, const void* row) {
#ifdef __CUDACC__
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];\n"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row))
               : "memory");
#else
  emu::ldmatrix(r, row, 4, true);
#endif
}

PTX void ldmatrix_x2_trans(uint32_t* r, const void* row) {
#ifdef __CUDACC__
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0,%1}, [%2];\n"
               : "=r"(r[0]), "=r"(r[1])
               : "r"(shared_address(row))
               : "memory");
#else
  emu::ldmatrix(r, row, 2, true);
#endif
}

// d += a * b on tensor cores: a 16x16 by rows, b 16x8 by columns, sums in fp32
template <bool kBf16>
PTX void mma(float (&d)[4], uint4 a, const uint32_t* b) {
#ifdef __CUDACC__
  if constexpr (kBf16)
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};\n"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a.x), "r"(a.y), "r"(a.z), "r"(a.w), "r"(b[0]), "r"(b[1]));
  else
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};\n"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a.x), "r"(a.y), "r"(a.z), "r"(a.w), "r"(b[0]), "r"(b[1]));
#else
  const uint32_t quad[4] = {a.x, a.y, a.z, a.w};
  kBf16 ? emu::mma_bf16(d, quad, b) : emu::mma_f16(d, quad, b);
#endif
}

// Likewise, a 16x8 by rows in the first two registers of a, b 8x8 by columns in b[0]
template <bool kBf16>
PTX void mma_k8(float (&d)[4], uint4 a, const uint32_t* b) {
#ifdef __CUDACC__
  if constexpr (kBf16)
    asm("mma.sync.aligned.m16n8k8.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};\n"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a.x), "r"(a.y), "r"(b[0]));
  else
    asm("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};\n"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a.x), "r"(a.y), "r"(b[0]));
#else
  const uint32_t quad[4] = {a.x, a.y, 0, 0}, pair[2] = {b[0], 0};  // the lower half of an m16n8k16
  kBf16 ? emu::mma_bf16(d, quad, pair) : emu::mma_f16(d, quad, pair);
#endif
}

// d += a * b with tf32 operands in 32-bit registers: a 16x8 by rows, b 8x8 by columns, sums in fp32
PTX void mma_tf32(float (&d)[4], uint4 a, const uint32_t* b) {
#ifdef __CUDACC__
  asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};\n"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a.x), "r"(a.y), "r"(a.z), "r"(a.w), "r"(b[0]), "r"(b[1]));
#else
  const uint32_t quad[4] = {a.x, a.y, a.z, a.w};
  emu::mma_tf32(d, quad, b);
#endif
}

// The nearest tf32 (8 exponent and 10 fraction bits), ties away from zero; the product ignores the 13 bits below.
PTX uint32_t to_tf32(float f) {
#ifdef __CUDACC__
  uint32_t u;
  asm("cvt.rna.tf32.f32 %0, %1;\n" : "=r"(u) : "f"(f));
  return u;
#else
  return emu::float_to_tf32(f);
#endif
}
uint32_t to_tf32(uint32_t) = delete;  // bits would be taken for a number

PTX float as_float(uint32_t u) {
#ifdef __CUDACC__
  return __uint_as_float(u);
#else
  float f;
  __builtin_memcpy(&f, &u, 4);
  return f;
#endif
}

PTX uint32_t as_bits(float f) {
#ifdef __CUDACC__
  return __float_as_uint(f);
#else
  uint32_t u;
  std::memcpy(&u, &f, sizeof u);
  return u;
#endif
}

// Hides from the compiler what v holds: it then computes what follows from v again instead of keeping it in registers,
// and keeps v instead of computing it again.
PTX void opaque(int& v) {
#ifdef __CUDACC__
  asm volatile("" : "+r"(v));
#else
  (void)v;
#endif
}

PTX void opaque(float& v) {
#ifdef __CUDACC__
  asm volatile("" : "+f"(v));
#else
  (void)v;
#endif
}

// The low word of (high:low) >> bits
PTX uint32_t funnel_shift_right(uint32_t low, uint32_t high, int bits) {
#ifdef __CUDACC__
  return __funnelshift_r(low, high, bits);
#else
  return static_cast<uint32_t>((static_cast<uint64_t>(high) << 32 | low) >> bits);
#endif
}

// 16-bit storage <-> fp32, to nearest even
template <bool kBf16>
PTX float to_float(uint16_t u) {
#ifdef __CUDACC__
  if constexpr (kBf16) return __bfloat162float(__ushort_as_bfloat16(u));
  else return __half2float(__ushort_as_half(u));
#else
  return kBf16 ? emu::bfloat16_to_float(u) : emu::half_to_float(u);
#endif
}

template <bool kBf16>
PTX uint16_t from_float(float f) {
#ifdef __CUDACC__
  if constexpr (kBf16) return __bfloat16_as_ushort(__float2bfloat16_rn(f));
  else return __half_as_ushort(__float2half_rn(f));
#else
  return kBf16 ? emu::float_to_bfloat16(f) : emu::float_to_half(f);
#endif
}

// Two of them in a word, the first in its low half
template <bool kBf16>
PTX uint32_t pack_floats(float low, float high) {
#ifdef __CUDACC__
  if constexpr (kBf16) {
    const __nv_bfloat162 v = __floats2bfloat162_rn(low, high);
    return *reinterpret_cast<const uint32_t*>(&v);
  } else {
    const __half2 v = __floats2half2_rn(low, high);
    return *reinterpret_cast<const uint32_t*>(&v);
  }
#else
  return from_float<kBf16>(low) | static_cast<uint32_t>(from_float<kBf16>(high)) << 16;
#endif
}

}  // namespace ptx

// ---- host side -----------------------------------------------------------------------------------------------------

#ifdef __CUDACC__
using LaunchError = cudaError_t;
#else
using LaunchError = int;
#endif

#ifdef __CUDACC__
namespace replknet_ext::cuda {
// Allows a kernel's launches on the current device all the shared memory that a block may have there (launch.cu).
cudaError_t allow_shared(const void* kernel);
}  // namespace replknet_ext::cuda
#endif

// Launches kernel(args) on a stream with opt-in shared memory; returns the CUDA error (emulator: 1, see launch_message).
template <class Args>
inline LaunchError launch_kernel(void (*kernel)(Args), dim3 grid, dim3 block, int smem, void* stream, Args args) {
#ifdef __CUDACC__
  const void* entry = reinterpret_cast<const void*>(kernel);
  void* params[] = {&args};
  cudaError_t e = smem > 48 << 10 ? replknet_ext::cuda::allow_shared(entry) : cudaSuccess;
  if (e == cudaSuccess) e = cudaLaunchKernel(entry, grid, block, params, smem, static_cast<cudaStream_t>(stream));
  if (e != cudaSuccess) cudaGetLastError();  // errors of ours must not surface in the caller's next check
  return e;
#else
  (void)stream;
  emu::last_error = emu::launch(grid, block, smem, [=] { kernel(args); });
  return emu::last_error.empty() ? 0 : 1;
#endif
}

inline const char* launch_message(int error) {
#ifdef __CUDACC__
  return cudaGetErrorString(static_cast<cudaError_t>(error));
#else
  (void)error;
  return emu::last_error.c_str();
#endif
}
