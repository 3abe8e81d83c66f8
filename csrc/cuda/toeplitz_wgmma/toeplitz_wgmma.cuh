// Depthwise convolution (stride 1, NCHW, fp16 or bf16, fp32 sums): the products of toeplitz_fwd by wgmma, the schedule of a
// ring of 16 output row pairs. A block computes one channel, a tile of chunks over all rows, and some tiles of images one
// after the other. 16 warps multiply: pair j belongs to warp j modulo 16. Each of 4 warpgroups gives one product per
// chunk offset and input row pair that one of its warps meets; the others of its warps multiply by zeros. 4 more warps copy.
// Shared memory: barriers | table [k][d][lane] x 16 bytes, a row of zeros last | stages | scratch: the filter, later outputs.
// A stage: an input row pair, [chunk][group of 8 images][row of the pair][image] x 16 bytes.
#pragma once
#include "../hopper.cuh"
#include "../toeplitz_fwd/tile.cuh"
#include "variants.h"
#include "args.h"

namespace replknet_ext::cuda {

#ifdef REPLKNET_EXT_SM90A
template <bool kBf16, int kOffsets, int kChunks, int kImages>
struct ToeplitzWgmma {
  static constexpr int kGroups = kImages / 8, kIn = kChunks + kOffsets - 1;
  static constexpr int kChunkBytes = kGroups * 256, kStage = kIn * kChunkBytes;

  const ToeplitzFwdArgs& a;
  unsigned char* smem;
  int channel, chunk0, first_group, end_group;

  __device__ __forceinline__ uint4* table() const { return reinterpret_cast<uint4*>(smem + kWgmmaBarriers); }
  __device__ __forceinline__ unsigned char* stages() const {
    return smem + kWgmmaBarriers + table_bytes(a.table_rows + 1, kOffsets);
  }
  __device__ __forceinline__ uint32_t full(int stage) const { return ptx::shared_address(smem) + 16 * stage; }
  __device__ __forceinline__ uint32_t empty(int stage) const { return full(stage) + 8; }

  __device__ __forceinline__ void init_barriers() const {
    if (threadIdx.x == 0)
      for (int stage = 0; stage < kWgmmaStages; ++stage)
        ptx::barrier_init(full(stage), kWgmmaProducers), ptx::barrier_init(empty(stage), kWgmmaRing);
    __syncthreads();
  }

  // ---- the warps that copy ----

  template <int kVec>
  __device__ __forceinline__ void fetch(unsigned char* to, int group, int q) const {
    constexpr int kBytes = kVec == 2 ? 16 : kVec, kParts = 16 / kBytes, kThreads = 32 * kWgmmaProducers;
    int thread = static_cast<int>(threadIdx.x) - 32 * kWgmmaRing;
    ptx::opaque(thread);  // with 32 registers what follows from it is better computed again
    const int part = thread % kParts, slot = thread / kParts & 7;
#pragma unroll 1
    for (int i = thread / (8 * kParts); i < 2 * kIn * kGroups; i += kThreads / (8 * kParts)) {
      const int chunk = i % kIn, row = i / kIn & 1, g = i / (2 * kIn);
      const int image = (group + g) * 8 + slot, iy = 2 * q - a.row_offset + row, ix = (chunk0 + a.d_first + chunk) * 8 + part * kBytes / 2;
      const bool inside = image < a.n && static_cast<unsigned>(iy) < static_cast<unsigned>(a.h) && ix >= 0;
      load_piece<kVec>(to + chunk * kChunkBytes + g * 256 + row * 128 + slot * 16 + part * kBytes,
                       a.x + (static_cast<size_t>(image) * a.c + channel) * a.h * a.width + static_cast<int64_t>(iy) * a.width + ix,
                       inside ? a.width - ix : 0);
    }
  }
  __device__ __forceinline__ void publish(int stage) const {
    ptx::proxy_fence();
    __syncwarp();
    if ((threadIdx.x & 31) == 0) ptx::barrier_arrive(full(stage));
  }
  __device__ __forceinline__ void produce() const {
    constexpr int kAhead = kWgmmaStages / 2;  // stages whose copies are in flight
    int stage = 0, round = 0, landed = 0;
#pragma unroll 1
    for (int group = first_group; group < end_group; group += kGroups)
#pragma unroll 1
      for (int q = a.q_first; q < a.q_end; ++q) {
        if (round > 0) ptx::barrier_wait(empty(stage), (round - 1) & 1);
        unsigned char* const to = stages() + stage * kStage;
        if (a.in_vec == 16) fetch<16>(to, group, q);
        else if (a.in_vec == 8) fetch<8>(to, group, q);
        else if (a.in_vec == 4) fetch<4>(to, group, q);
        else fetch<2>(to, group, q);
        ptx::cp_async_commit();
        ptx::cp_async_wait<kAhead - 1>();
        if (++stage == kWgmmaStages) stage = 0, ++round;
        if (round * kWgmmaStages + stage >= kAhead) publish(landed), landed = (landed + 1) % kWgmmaStages;
      }
    ptx::cp_async_wait<0>();
    for (; landed != stage; landed = (landed + 1) % kWgmmaStages) publish(landed);
  }

  // ---- the warps that multiply ----

  __device__ __forceinline__ void build() const {
    uint16_t* const filter = reinterpret_cast<uint16_t*>(stages() + kWgmmaStages * kStage);
    load_filter<kOffsets>(filter, a, channel, a.ky0 - 1, 8 * a.d_first - 7 + a.pad_left, filter_rows(a.table_rows), kWgmmaRing);
    ptx::barrier_sync<1, 32 * kWgmmaRing>();
    build_table<kOffsets>(table(), filter, a.table_rows, kWgmmaRing);
    if (threadIdx.x < kOffsets * 32)
      ptx::store_shared(table() + a.table_rows * kOffsets * 32 + threadIdx.x, make_uint4(0, 0, 0, 0));
    ptx::barrier_sync<1, 32 * kWgmmaRing>();
  }
  template <int kSums>
  __device__ __forceinline__ static void clear(float (&sums)[kSums]) {
#pragma unroll
    for (int i = 0; i < kSums; ++i) sums[i] = 0.f, ptx::opaque(sums[i]);  // not behind the fence of the next product
  }
  template <int kOwn>
  __device__ __forceinline__ void store(const float (&sums)[kOwn * kGroups * 4], int warp, int group, int pair) const {
    const float bias = a.bias ? ptx::to_float<kBf16>(a.bias[channel]) : 0.f;
    unsigned char* const scratch = stages() + kWgmmaStages * kStage + warp * transpose_bytes(kChunks);
#pragma unroll
    for (int g = 0; g < kGroups; ++g) {
      ptx::opaque(group);  // where each group's images lie is not worth registers while products are made
      float own[kOwn][4];
#pragma unroll
      for (int i = 0; i < kOwn * 4; ++i) own[i / 4][i % 4] = sums[(i / 4 * kGroups + g) * 4 + i % 4];
      store_pair<kBf16, kOwn>(scratch, a, own, bias, channel, group + g, pair, chunk0, min(chunk0 + kOwn, a.chunks));
    }
  }
  // The products of kProducts chunk offsets from d_first on, summed into kOwn chunks.
  template <int kProducts, int kOwn>
  __device__ __forceinline__ void multiply(int d_first) const {
    constexpr int kSums = kOwn * kGroups * 4;
    const int warp = ptx::uniform(static_cast<int>(threadIdx.x >> 5)), lane = threadIdx.x & 31, first = warp & ~3;
    const uint64_t rows = ptx::wgmma_descriptor(ptx::shared_address(stages()) + d_first * kChunkBytes, 128, 256);
    const auto free = [&](int stage) {
      if (stage >= 0 && lane == 0) ptx::barrier_arrive(empty(stage));
    };
    float sums[kSums];
    clear(sums);
    uint4 v[kProducts];
    int stage = 0, parity = 0, held = -1;  // held: the stage that products in flight read
    const int end = a.pairs - 1 + a.table_rows;
#pragma unroll 1
    for (int group = first_group; group < end_group; group += kGroups) {
#pragma unroll 1
      for (int met = 0; met < end; ++met) {  // pair j meets the input pairs met - shift of met = j to j + table_rows - 1
        // A warp that waits for its pair has multiplied zeros by rows of others, maybe Inf: pair `met` begins with none of it.
        if ((met & (kWgmmaRing - 4)) == first && met < a.pairs) {
          ptx::wgmma_wait<0>();
          free(held);
          held = -1;
          if ((met & 3) == (warp & 3)) clear(sums);
        }
        const int q = met - a.shift;
        if (q >= a.q_first && q < a.q_end) {
          ptx::barrier_wait(full(stage), parity);
          bool any = false;
#pragma unroll
          for (int w = 0; w < 4; ++w) {
            const int k = (met - first - w) & (kWgmmaRing - 1);
            any |= k < a.table_rows && static_cast<unsigned>(met - k) < static_cast<unsigned>(a.pairs);
          }
          if (any) {
            const int k = (met - warp) & (kWgmmaRing - 1);
            const bool meets = k < a.table_rows && static_cast<unsigned>(met - k) < static_cast<unsigned>(a.pairs);
            const uint4* const own = table() + ((meets ? k : a.table_rows) * kOffsets + d_first) * 32 + lane;
#pragma unroll
            for (int d = 0; d < kProducts; ++d) {
              ptx::wgmma_wait<kProducts - 1>();  // the product that used these registers
              if (d == kProducts - 1) free(held), held = stage;
              v[d] = ptx::load_shared(own + d * 32);
              ptx::wgmma_fence();
              ptx::wgmma<kBf16, kSums>(sums, v[d], rows + stage * (kStage / 16) + d * (kChunkBytes / 16));
              ptx::wgmma_commit();
            }
          } else {
            ptx::wgmma_wait<0>();
            free(held), free(stage);
            held = -1;
          }
          if (++stage == kWgmmaStages) stage = 0, parity ^= 1;
        }
        const int done = met - a.table_rows + 1;  // the pair that has met its last row
        if (done >= 0 && (done & (kWgmmaRing - 4)) == first) {
          ptx::wgmma_wait<0>();
          free(held);
          held = -1;
          if ((done & 3) == (warp & 3)) {
            store<kOwn>(sums, warp, group, done);
          }
        }
      }
      ptx::wgmma_wait<0>();
      free(held);
      held = -1;
    }
  }
  // At the edges of the plane some chunk offsets meet no chunk of the image: whole products are left out there, and half of
  // each where the tile's second chunk does not exist.
  __device__ __forceinline__ void consume() const {
    build();
    const int chunks = min(kChunks, a.chunks - chunk0), low = chunk0 + a.d_first;  // low: first input chunk
    const int first = max(0, 1 - chunks - low), end = min(kOffsets, ceil_div(a.width, 8) - low), products = end - first;
    constexpr int kFewer = kOffsets - 1, kFewest = kOffsets / 2 + 1;
    if constexpr (kChunks == 2) {
      if constexpr (kImages >= 64)
        if (chunks == 1 && products <= kFewest) return multiply<kFewest, 1>(max(0, min(first, kOffsets - kFewest)));
      if (products <= kFewer) return multiply<kFewer, 2>(max(0, min(first, kOffsets - kFewer)));
    }
    multiply<kOffsets, kChunks>(0);
  }
};
#endif

template <bool kBf16, int kOffsets, int kChunks, int kImages>
__global__ void __launch_bounds__(32 * (kWgmmaRing + kWgmmaProducers), 1)
    toeplitz_wgmma_kernel(const __grid_constant__ ToeplitzFwdArgs a) {
#ifdef REPLKNET_EXT_SM90A
  DYN_SMEM(smem);
  using Work = ToeplitzWgmma<kBf16, kOffsets, kChunks, kImages>;
  // Tiles at the edges have less to do: they come last.
  const int channel = static_cast<int>(blockIdx.x) % a.c, place = static_cast<int>(blockIdx.x) / a.c;
  const int tile = place + 2 < a.chunk_tiles ? place + 1 : place + 1 < a.chunk_tiles ? 0 : place;
  const int first_group = a.group0 + static_cast<int>(blockIdx.y) * Work::kGroups * a.turns;
  const Work work{a, smem, channel, tile * kChunks, first_group, min(first_group + Work::kGroups * a.turns, ceil_div(a.n, 8))};
  work.init_barriers();
  if (threadIdx.x >= 32 * kWgmmaRing) {
    ptx::fewer_registers<32>();  // 640 threads begin with 96 each
    work.produce();
  } else {
    ptx::more_registers<112>();
    work.consume();
  }
#else
  (void)a;
#endif
}

}  // namespace replknet_ext::cuda
