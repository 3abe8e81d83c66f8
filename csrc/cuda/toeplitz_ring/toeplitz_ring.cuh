// Depthwise convolution (stride 1, NCHW, fp16 or bf16, fp32 sums): the products of toeplitz_fwd in the schedule of ring.cuh.
// A block computes one channel, a tile of chunks over all rows, and some groups of slots one after the other.
// Shared memory: table [k][d][lane] x 16 bytes | stages | scratch: the filter, later outputs.
#pragma once
#include "../toeplitz_fwd/toeplitz_fwd.cuh"
#include "ring.cuh"
#include "variants.h"

namespace replknet_ext::cuda {

// The products by mma.sync. A stage holds [group][pair][chunk][line of the pair][slot] x 16 bytes.
template <bool kBf16, int kLine, int kOffsets, int kOwnPairs, int kSlotGroups, int kChunks, bool kWhole>
struct ToeplitzRingProduct {
  static constexpr int kPairs = kOwnPairs, kGroups = kSlotGroups, kColumns = 8 / kLine;  // columns of a chunk
  using Warp = ToeplitzFwdWarp<kBf16, kOffsets, kPairs, kGroups, kChunks, kWhole>;

  const ToeplitzFwdArgs& a;
  int channel, chunk0, chunk_low, warp, lane;  // chunk_low: of the input
  float bias;
  unsigned char* smem;
  Warp t;

  __device__ __forceinline__ uint4* table() const { return reinterpret_cast<uint4*>(smem); }
  __device__ __forceinline__ unsigned char* place(int stage) const {
    return smem + table_bytes(a.table_rows, kOffsets) + stage * kGroups * a.plane;
  }
  __device__ __forceinline__ void prepare() {
    const int d_first = kWhole ? -(kOffsets / 2) : a.d_first;
    uint16_t* const filter = reinterpret_cast<uint16_t*>(place(kRingStages));
    load_filter<kOffsets, kLine>(filter, a, channel, a.ky0 - 2 * kLine + 1, kColumns * (d_first - 1) + 1 + a.pad_left,
                                 filter_rows(a.table_rows, kLine));
    __syncthreads();
    build_table<kOffsets, kLine>(table(), filter, a.table_rows);
  }
  __device__ __forceinline__ void fetch(int stage, int group, int q, int pairs) {
    load_input<kWhole ? kChunks : 0, kLine>(place(stage), a, channel, group, q, pairs, chunk_low, Warp::kIn);
  }
  __device__ __forceinline__ void load(int stage, int pair) {
    t.load_b(place(stage) + pair * Warp::kIn * 256 + lane * 16, a.plane);
  }
  __device__ __forceinline__ void multiply(int i, int k) {
    uint4 v[kOffsets];
    Warp::load_a(v, table() + k * kOffsets * 32 + lane);
    t.multiply(i, v);
  }
  __device__ __forceinline__ void store(int i, int group, int pair) {
    unsigned char* const scratch = place(kRingStages) + warp * transpose_bytes(kChunks);
#pragma unroll
    for (int g = 0; g < kGroups; ++g) {
      store_pair<kBf16, kChunks, kLine>(scratch, a, t.acc[g][i], bias, channel, group + g, pair, chunk0,
                                        min(chunk0 + kChunks, a.chunks));
#pragma unroll
      for (int c = 0; c < kChunks; ++c)
#pragma unroll
        for (int e = 0; e < 4; ++e) t.acc[g][i][c][e] = 0.f;
    }
  }
};

template <bool kBf16, int kLine, int kOffsets, int kPairs, int kGroups, int kChunks, bool kWhole>
__global__ void __launch_bounds__(kRingWarps * 32, 1)
    toeplitz_ring_kernel(const __grid_constant__ ToeplitzFwdArgs a) {
  DYN_SMEM(smem);
  const int tile = kWhole ? 0 : static_cast<int>(blockIdx.x) % a.chunk_tiles;
  ToeplitzRingProduct<kBf16, kLine, kOffsets, kPairs, kGroups, kChunks, kWhole> product{a};
  product.channel = kWhole ? static_cast<int>(blockIdx.x) : static_cast<int>(blockIdx.x) / a.chunk_tiles;
  product.warp = ptx::uniform(static_cast<int>(threadIdx.x >> 5)), product.lane = threadIdx.x & 31;
  product.chunk0 = tile * kChunks, product.chunk_low = kWhole ? 0 : product.chunk0 + a.d_first;
  product.bias = a.bias ? ptx::to_float<kBf16>(a.bias[product.channel]) : 0.f;
  product.smem = smem;
  product.t.clear();
  const int first_group = a.group0 + static_cast<int>(blockIdx.y) * kGroups * a.turns;
  const int groups = ceil_div(a.n << a.split_log2, 8);
  run_ring(product, a, first_group, min(first_group + kGroups * a.turns, groups));
}

}  // namespace replknet_ext::cuda
