// What a GPU gives at most, one resource at a time: products from registers (mma.sync in bf16 and tf32, wgmma), fused
// multiply-adds, reads of the L2 cache by the size of their pieces, copies between the shared memories of a cluster,
// our transposes between memory formats, launches. Built by gpu_ceilings.py as a shared library; each function launches one kernel and returns a CUDA error.
#include <cstdint>
#include <cuda_runtime.h>

#include "../csrc/cuda/transpose.cu"
#include "wgmma.cuh"

namespace replknet_ext::cuda {
cudaError_t allow_shared(const void*) { return cudaSuccess; }  // transposes need no permission
}  // namespace replknet_ext::cuda

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

// A warp keeps kChains independent sums, so that latency is hidden from one or two warps per scheduler on. Successive
// products have the same A, or kA different ones in turn, and so for B: a Toeplitz kernel holds A over several B.
template <bool kBf16, int kA, int kB>
__global__ void __launch_bounds__(kThreads) mma_rate(int rounds, float* out, long long* cycles) {
  const uint32_t seed = (blockIdx.x * kThreads + threadIdx.x) * 64;
  float c[kChains][4] = {};
  uint32_t a[kA][4], b[kB][2];
  for (int k = 0; k < kA; ++k)
    for (int i = 0; i < 4; ++i) a[k][i] = kBf16 ? bf16_pair(seed + 4 * k + i) : tf32_value(seed + 4 * k + i);
  for (int k = 0; k < kB; ++k)
    for (int i = 0; i < 2; ++i) b[k][i] = kBf16 ? bf16_pair(seed + 40 + 2 * k + i) : tf32_value(seed + 40 + 2 * k + i);
  __syncthreads();
  const long long start = clock64();
  for (int r = 0; r < rounds; ++r)
#pragma unroll
    for (int i = 0; i < kChains; ++i) kBf16 ? mma_bf16(c[i], a[i % kA], b[i % kB]) : mma_tf32(c[i], a[i % kA], b[i % kB]);
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

// ---- wgmma ----

[[maybe_unused]] constexpr int kWarpgroup = 128, kSteps = 4;  // products of a group: each with an A fragment of its own

// kShared: A comes from shared memory. Two warpgroups in a block, each with 4 k-steps of A and B.
template <int kN, bool kShared>
__global__ void __launch_bounds__(2 * kWarpgroup) wgmma_rate(int rounds, float* out, long long* cycles) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  __shared__ __align__(128) uint32_t a_shared[2][kSteps][64 * 8];
  __shared__ __align__(128) uint32_t b_shared[kSteps][kN * 8];
  const uint32_t seed = (blockIdx.x * 2 * kWarpgroup + threadIdx.x) * 64;
  for (int i = threadIdx.x; i < kSteps * kN * 8; i += blockDim.x) (&b_shared[0][0])[i] = bf16_pair(i + 7);
  for (int i = threadIdx.x; i < 2 * kSteps * 64 * 8; i += blockDim.x) (&a_shared[0][0][0])[i] = bf16_pair(i + 7777);
  uint32_t a[kSteps][4];
  for (int k = 0; k < kSteps; ++k)
    for (int i = 0; i < 4; ++i) a[k][i] = bf16_pair(seed + 4 * k + i);
  float d[kN / 2] = {};
  asm volatile("fence.proxy.async;" ::: "memory");
  __syncthreads();
  uint64_t lhs[kSteps], rhs[kSteps];
  for (int k = 0; k < kSteps; ++k) {
    lhs[k] = wgmma::descriptor(a_shared[threadIdx.x / kWarpgroup][k], 128, 256);
    rhs[k] = wgmma::descriptor(b_shared[k], 128, 256);
  }
  const long long start = clock64();
  for (int r = 0; r < rounds; ++r) {
    wgmma::fence();
#pragma unroll
    for (int k = 0; k < kSteps; ++k) {
      if constexpr (kShared)
        wgmma::Product<kN>::shared(d, lhs[k], rhs[k]);
      else
        wgmma::Product<kN>::registers(d, a[k], rhs[k]);
    }
    wgmma::commit();
    wgmma::wait<0>();
  }
  __syncthreads();
  if (threadIdx.x == 0) cycles[blockIdx.x] = clock64() - start;
  float sum = 0;
  for (int i = 0; i < kN / 2; ++i) sum += d[i];
  out[blockIdx.x * 2 * kWarpgroup + threadIdx.x] = sum;
#endif
}

// One m64n32k16 of small integers as each kind of descriptor has it; d is [64][32].
// kind 0: B [n][k], A from registers; 1: B [k][n] ("rows"); 2: B [n][k], A [m][k] from shared memory; 3: as 2, but A
// is a periodic table of Toeplitz blocks: its core matrix (i, j) is block i + j of 9, as both distances are 128 bytes.
__global__ void __launch_bounds__(kWarpgroup) wgmma_values(int kind, const uint16_t* a, const uint16_t* b, float* out) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  __shared__ __align__(128) uint16_t a_shared[64 * 16], b_shared[32 * 16];
  const int t = threadIdx.x, lane = t % 32, warp = t / 32;
  if (kind == 3) {
    for (int i = t; i < 9 * 64; i += kWarpgroup) a_shared[i] = a[i];  // 9 blocks of 8 x 8
  } else {
    // core matrix (m / 8, k / 8) at 128 (2 (m / 8) + k / 8)
    for (int i = t; i < 64 * 16; i += kWarpgroup)
      a_shared[(i / 16 / 8 * 2 + i % 16 / 8) * 64 + i / 16 % 8 * 8 + i % 8] = a[i];
  }
  for (int i = t; i < 32 * 16; i += kWarpgroup) {
    const int n = i / 16, k = i % 16;
    if (kind == 1)  // core matrices of 8 k x 8 n, the 4 along n 128 bytes apart
      b_shared[(k / 8 * 4 + n / 8) * 64 + k % 8 * 8 + n % 8] = b[i];
    else
      b_shared[(n / 8 * 2 + k / 8) * 64 + n % 8 * 8 + k % 8] = b[i];
  }
  asm volatile("fence.proxy.async;" ::: "memory");
  __syncthreads();
  uint32_t fragment[4];
  for (int i = 0; i < 4; ++i) {
    const int m = 16 * warp + lane / 4 + i % 2 * 8, k = lane % 4 * 2 + i / 2 * 8;
    fragment[i] = a[kind == 3 ? 0 : m * 16 + k] | static_cast<uint32_t>(a[kind == 3 ? 0 : m * 16 + k + 1]) << 16;
  }
  float d[16] = {};
  const uint64_t by_columns = wgmma::descriptor(b_shared, 128, 256), by_rows = wgmma::descriptor(b_shared, 512, 128);
  wgmma::fence();
  if (kind == 0) wgmma::Product<32>::registers(d, fragment, by_columns);
  if (kind == 1) wgmma::Product<32>::registers<true>(d, fragment, by_rows);
  if (kind == 2) wgmma::Product<32>::shared(d, wgmma::descriptor(a_shared, 128, 256), by_columns);
  if (kind == 3) wgmma::Product<32>::shared(d, wgmma::descriptor(a_shared, 128, 128), by_columns);
  wgmma::commit();
  wgmma::wait<0>();
  for (int i = 0; i < 16; ++i)
    out[(16 * warp + lane / 4 + i / 2 % 2 * 8) * 32 + i / 4 * 8 + lane % 4 * 2 + i % 2] = d[i];
#endif
}

// ---- memories ----

// Every warp reads pieces of kPiece bytes, one per sector of 32: `bytes` of the buffer in turn, from the L2 cache.
template <int kPiece>
__global__ void __launch_bounds__(kThreads) l2_rate(const char* buffer, int64_t bytes, int rounds, uint32_t* out, long long* cycles) {
  constexpr int kVector = kPiece == 4 ? 4 : 16, kStride = kPiece == 32 ? 16 : 32, kUnroll = 8;
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads * kStride;
  int64_t at = (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) * kStride;
  uint32_t sum = 0;
  __syncthreads();
  const long long start = clock64();
  for (int r = 0; r < rounds; ++r)
#pragma unroll
    for (int i = 0; i < kUnroll; ++i) {
      if constexpr (kVector == 16) {
        const uint4 v = __ldcg(reinterpret_cast<const uint4*>(buffer + at));
        sum ^= v.x ^ v.y ^ v.z ^ v.w;
      } else {
        sum ^= __ldcg(reinterpret_cast<const uint32_t*>(buffer + at));
      }
      at += step;
      if (at >= bytes) at -= bytes;
    }
  __syncthreads();
  if (threadIdx.x == 0) cycles[blockIdx.x] = clock64() - start;
  out[blockIdx.x * kThreads + threadIdx.x] = sum;
}

// Eight blocks of a cluster send `piece` bytes to each other's shared memory, all to all, `rounds` times.
__global__ void __launch_bounds__(kThreads) dsmem_rate(int piece, int rounds, long long* cycles) {
#if __CUDA_ARCH__ >= 900
  extern __shared__ __align__(128) char shared[];  // 8 pieces to send, 8 to receive
  __shared__ __align__(8) uint64_t full;
  const auto own = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
  const auto barrier = static_cast<uint32_t>(__cvta_generic_to_shared(&full));
  uint32_t rank;
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  if (threadIdx.x == 0) asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(barrier) : "memory");
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  asm volatile("barrier.cluster.arrive.aligned;\n barrier.cluster.wait.aligned;" ::: "memory");
  const long long start = clock64();
  for (int r = 0; r < rounds; ++r) {
    if (threadIdx.x == 0) {
      asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(8 * piece) : "memory");
      for (uint32_t to = 0; to < 8; ++to) {
        uint32_t target, remote;
        asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(target) : "r"(own + (8 + rank) * piece), "r"(to));
        asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(remote) : "r"(barrier), "r"(to));
        asm volatile("cp.async.bulk.shared::cluster.shared::cta.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(target),
                     "r"(own + to * piece), "r"(piece), "r"(remote)
                     : "memory");
      }
    }
    asm volatile(
        "{\n .reg .pred done;\n WAIT%=: mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n @!done bra WAIT%=;\n}" ::"r"(barrier),
        "r"(r & 1)
        : "memory");
    asm volatile("barrier.cluster.arrive.aligned;\n barrier.cluster.wait.aligned;" ::: "memory");  // all may send again
  }
  if (threadIdx.x == 0) cycles[blockIdx.x] = clock64() - start;
#endif
}

__global__ void empty() {}
__global__ void one_load(const float* in, float* out) { out[blockIdx.x * blockDim.x + threadIdx.x] = in[threadIdx.x] + 1; }

template <int kN>
void launch_wgmma(bool from_shared, int blocks, int rounds, float* out, long long* cycles, cudaStream_t s) {
  if (from_shared)
    wgmma_rate<kN, true><<<blocks, 2 * kWarpgroup, 0, s>>>(rounds, out, cycles);
  else
    wgmma_rate<kN, false><<<blocks, 2 * kWarpgroup, 0, s>>>(rounds, out, cycles);
}

}  // namespace

// out: blocks * 256 floats; cycles: one per block, here and below. A block issues, each round, 8 warps * 8 tensor
// instructions, or 256 threads * 16 fused multiply-adds. kind: 0 bf16, A and B fixed; 1 A fixed; 2 B fixed; 3 both vary;
// 4 tf32, A fixed; 5 fused multiply-adds.
extern "C" int registers_rate(int kind, int blocks, int rounds, float* out, long long* cycles, void* stream) {
  const auto s = static_cast<cudaStream_t>(stream);
  if (kind == 0) mma_rate<true, 1, 1><<<blocks, kThreads, 0, s>>>(rounds, out, cycles);
  if (kind == 1) mma_rate<true, 1, 8><<<blocks, kThreads, 0, s>>>(rounds, out, cycles);
  if (kind == 2) mma_rate<true, 8, 1><<<blocks, kThreads, 0, s>>>(rounds, out, cycles);
  if (kind == 3) mma_rate<true, 8, 8><<<blocks, kThreads, 0, s>>>(rounds, out, cycles);
  if (kind == 4) mma_rate<false, 1, 8><<<blocks, kThreads, 0, s>>>(rounds, out, cycles);
  if (kind == 5) fma_rate<<<blocks, kThreads, 0, s>>>(rounds, out, cycles);
  return cudaGetLastError();
}

// A block issues, each round, 2 warpgroups * 4 products m64nNk16.
extern "C" int wgmma_rates(int n, int from_shared, int blocks, int rounds, float* out, long long* cycles, void* stream) {
  const auto s = static_cast<cudaStream_t>(stream);
  if (n == 128) launch_wgmma<128>(from_shared, blocks, rounds, out, cycles, s);
  if (n == 64) launch_wgmma<64>(from_shared, blocks, rounds, out, cycles, s);
  if (n == 32) launch_wgmma<32>(from_shared, blocks, rounds, out, cycles, s);
  if (n == 8) launch_wgmma<8>(from_shared, blocks, rounds, out, cycles, s);
  return cudaGetLastError();
}

// a: bf16 [64][16], or 9 blocks of 8 x 8 for kind 3; b: bf16 [32][16] (n, k); out: [64][32].
extern "C" int wgmma_value(int kind, const void* a, const void* b, float* out, void* stream) {
  wgmma_values<<<1, kWarpgroup, 0, static_cast<cudaStream_t>(stream)>>>(kind, static_cast<const uint16_t*>(a),
                                                                       static_cast<const uint16_t*>(b), out);
  return cudaGetLastError();
}

// A block reads, each round, 256 threads * 8 vectors; a warp's instruction touches 16 sectors (piece 32) or 32.
extern "C" int l2_rates(int piece, int blocks, int rounds, const char* buffer, int64_t bytes, uint32_t* out, long long* cycles,
                        void* stream) {
  const auto s = static_cast<cudaStream_t>(stream);
  if (piece == 32) l2_rate<32><<<blocks, kThreads, 0, s>>>(buffer, bytes, rounds, out, cycles);
  if (piece == 16) l2_rate<16><<<blocks, kThreads, 0, s>>>(buffer, bytes, rounds, out, cycles);
  if (piece == 4) l2_rate<4><<<blocks, kThreads, 0, s>>>(buffer, bytes, rounds, out, cycles);
  return cudaGetLastError();
}

// A block sends, each round, 8 pieces. most_clusters: how many fit the GPU at once.
extern "C" int dsmem_rates(int piece, int blocks, int rounds, long long* cycles, int* most_clusters, void* stream) {
  const int bytes = 16 * piece;
  if (const auto error = cudaFuncSetAttribute(dsmem_rate, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes)) return error;
  cudaLaunchConfig_t config{};
  cudaLaunchAttribute cluster{};
  cluster.id = cudaLaunchAttributeClusterDimension, cluster.val.clusterDim = {8, 1, 1};
  config.gridDim = blocks, config.blockDim = kThreads, config.dynamicSmemBytes = bytes;
  config.stream = static_cast<cudaStream_t>(stream), config.attrs = &cluster, config.numAttrs = 1;
  if (const auto error = cudaOccupancyMaxActiveClusters(most_clusters, dsmem_rate, &config)) return error;
  return cudaLaunchKernelEx(&config, dsmem_rate, piece, rounds, cycles);
}

// As replknet_ext::cuda::transpose.
extern "C" int transposed(int element_bytes, int64_t matrices, int64_t rows, int64_t columns, const void* from, void* to,
                          void* stream) {
  return replknet_ext::cuda::transpose(from, to, matrices, rows, columns, element_bytes, stream);
}

// For the cost of a launch as a node of a graph: nothing, or a load and a store that depends on it.
extern "C" int node(int loads, const float* in, float* out, int blocks, void* stream) {
  const auto s = static_cast<cudaStream_t>(stream);
  if (loads)
    one_load<<<blocks, kThreads, 0, s>>>(in, out);
  else
    empty<<<blocks, kThreads, 0, s>>>();
  return cudaGetLastError();
}
