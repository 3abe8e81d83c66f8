// CUDA for g++: runs the blocks of an unchanged kernel file on the CPU, one hand-switched fiber per CUDA thread.
// ptx.cuh includes this file when nvcc is not the compiler. Only declarations here: a kernel file built for the race
// check (-fsanitize=thread) instruments everything it includes, and the emulator must not watch itself.
#pragma once
#ifdef __CUDACC__
#error "this header stands in for CUDA on the host"
#endif
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <string>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __grid_constant__
// Static shared memory would escape the checks: a kernel that uses it does not compile.
#define __shared__ static_shared_memory_is_not_checked_use_DYN_SMEM

struct alignas(8) uint2 { unsigned x, y; };
struct uint3 { unsigned x, y, z; };
struct alignas(16) uint4 { unsigned x, y, z, w; };
struct alignas(8) float2 { float x, y; };
struct alignas(16) float4 { float x, y, z, w; };
struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
inline float2 make_float2(float x, float y) { return {x, y}; }
using std::max;
using std::min;

namespace emu {
struct Place {  // where the running fiber is
  uint3 thread, block;
  dim3 block_dim, grid_dim;
  unsigned char* smem;
};
extern Place now;

// Runs the grid; returns "" or the first error.
extern std::string last_error;
std::string launch(dim3 grid, dim3 block, size_t smem, const std::function<void()>& body);

void syncthreads(const void* site);  // site: which __syncthreads of the source
void syncwarp(unsigned mask);
uint32_t shuffle(unsigned mask, uint32_t value, int source_lane);
unsigned ballot(unsigned mask, bool predicate);

// cp.async: the destination is poisoned now and filled at the wait
void cp_async(void* dst, const void* src, int bytes);
void cp_commit();
void cp_wait(int groups_left);

// PTX fragment layouts of m8n8 b16 matrices, m16n8k16 products and, for tf32, m16n8k8
void ldmatrix(uint32_t* r, const void* row, int matrices, bool transpose);
void mma_f16(float* d, const uint32_t* a, const uint32_t* b);
void mma_bf16(float* d, const uint32_t* a, const uint32_t* b);
void mma_tf32(float* d, const uint32_t* a, const uint32_t* b);

// shared memory through ptx.cuh's wide accesses: bounds, alignment, races, banks
void load_shared(void* value, const void* src, int bytes);
void store_shared(void* dst, const void* value, int bytes);
void require_aligned(const void* p, int bytes);  // of a wide access of global memory

float half_to_float(uint16_t u);
uint16_t float_to_half(float f);
float bfloat16_to_float(uint16_t u);
uint16_t float_to_bfloat16(float f);
uint32_t float_to_tf32(float f);
}  // namespace emu

#define DYN_SMEM(name) unsigned char* name = emu::now.smem
#define threadIdx (emu::now.thread)
#define blockIdx (emu::now.block)
#define blockDim (emu::now.block_dim)
#define gridDim (emu::now.grid_dim)
#define __syncthreads() \
  emu::syncthreads([]() -> const void* { static const char site = 0; return &site; }())
inline void __syncwarp(unsigned mask = ~0u) { emu::syncwarp(mask); }
inline int __shfl_sync(unsigned mask, int v, int lane) { return static_cast<int>(emu::shuffle(mask, v, lane)); }
inline int __shfl_xor_sync(unsigned mask, int v, int x) {
  return static_cast<int>(emu::shuffle(mask, v, static_cast<int>(threadIdx.x & 31) ^ x));
}
inline float __shfl_xor_sync(unsigned mask, float v, int x) {
  uint32_t u;
  std::memcpy(&u, &v, 4);
  u = emu::shuffle(mask, u, static_cast<int>(threadIdx.x & 31) ^ x);
  std::memcpy(&v, &u, 4);
  return v;
}
inline unsigned __ballot_sync(unsigned mask, int predicate) { return emu::ballot(mask, predicate != 0); }
