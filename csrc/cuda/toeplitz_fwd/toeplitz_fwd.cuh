// Depthwise convolution (stride 1, NCHW, fp16 or bf16, fp32 sums) as a register Toeplitz on mma.m16n8k16.
//   A (weights): m = 2 output rows x 8 columns, k = 2 input rows x 8 columns.  B (input): n = 8 slots.
// A slot is an image or, where the batch is small, a group of rows of one. Everything is counted in row pairs and
// 8-column chunks. Output pairs start at even rows, input pairs at -row_offset (0 or 1): the kernel row where an output
// pair meets an input pair then has one parity, and the table of weight fragments needs half as many rows.
// 4x4 tiles (kLine 2) are the same with lines in place of rows. A line is what 16 bytes of a slot hold of a chunk: 1 row of
// 8 columns, or 2 rows of 4. A pair is 2 lines, so m = 4 x 4 outputs, k = 4 x 4 inputs, and row_offset is 0 to 3.
// bwd_input is the same kernel with the filter flipped while it is staged.
//
// A block computes one channel, block_groups groups of 8 slots and a tile of block_pairs x block_chunks of the output.
// Shared memory: table [k][d][lane] x 16 bytes | input (see load_input) | scratch. No global workspace, no atomics.
//
// Inf and NaN: a fragment multiplies inputs outside the filter's support by zero, so a non-finite input can turn outputs
// beyond those that see it into NaN: up to 2 rows and, for the "same" padding of the papers' filters, 8 to 14 columns; in
// 4x4 tiles up to 6 of each (LaunchPlan::spill_rows and spill_columns); never another image or channel.
#pragma once
#include "tile.cuh"
#include "variants.h"

namespace replknet_ext::cuda {

// One warp's tile: kPairs output pairs x kChunks chunks x kGroups groups of slots.
template <bool kBf16, int kOffsets, int kPairs, int kGroups, int kChunks, bool kWhole>
struct ToeplitzFwdWarp {
  // Whole planes hold no chunk outside the image; their products are left out when compiling.
  static constexpr int kIn = kWhole ? kChunks : kChunks + kOffsets - 1;
  float acc[kGroups][kPairs][kChunks][4];
  uint32_t b[kGroups][2 * kIn];

  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int i = 0; i < kGroups * kPairs * kChunks * 4; ++i) (&acc[0][0][0][0])[i] = 0.f;
  }
  __device__ __forceinline__ void load_b(const unsigned char* p, int plane) {
#pragma unroll
    for (int g = 0; g < kGroups; ++g) {
#pragma unroll
      for (int c = 0; c + 1 < kIn; c += 2) ptx::ldmatrix_x4(&b[g][2 * c], p + g * plane + c * 256);
      if constexpr (kIn % 2 == 1) ptx::ldmatrix_x2(&b[g][2 * kIn - 2], p + g * plane + (kIn - 1) * 256);
    }
  }
  __device__ __forceinline__ static void load_a(uint4 (&v)[kOffsets], const uint4* table_row) {
#pragma unroll
    for (int d = 0; d < kOffsets; ++d) v[d] = ptx::load_shared(table_row + d * 32);
  }
  __device__ __forceinline__ void multiply(int pair, const uint4 (&v)[kOffsets]) {
#pragma unroll
    for (int d = 0; d < kOffsets; ++d)
#pragma unroll
      for (int c = 0; c < kChunks; ++c) {
        const int in = kWhole ? c + d - kOffsets / 2 : c + d;
        if (in >= 0 && in < kIn)
#pragma unroll
          for (int g = 0; g < kGroups; ++g) ptx::mma<kBf16>(acc[g][pair][c], v[d], &b[g][2 * in]);
      }
  }
};

// Sums input pairs q ... q_last into the warp's tile. Pair i of the tile meets q at table row q + k0 - i; a points to the
// row q + k0, b to the input pair q. kRotate: the fragments of (q, i) are those of (q + 1, i + 1), so that a table row is
// loaded once and passed on in registers, kPairs input pairs a trip.
template <bool kRotate, int kOffsets, int kPairs, class Warp>
__device__ __forceinline__ void sum_pairs(Warp& t, const uint4* a, const unsigned char* b, int q, int q_last, int k0,
                                          int table_rows, int pairs, int b_stride, int plane) {
  constexpr int kTrip = kRotate ? kPairs : 1;
  // trips from q = steady on, their number, meet every pair of the tile: they need no conditions
  const int steady = kPairs - 1 - k0;
  const int steady_pairs = pairs == kPairs ? min(q_last, table_rows - 1 - k0) - steady - (kTrip - 1) + 1 : 0;
  auto is_steady = [&] { return static_cast<unsigned>(q - steady) < static_cast<unsigned>(max(0, steady_pairs)); };
  auto meets = [&](int row, int i) {  // table row of pair 0
    return static_cast<unsigned>(row - i) < static_cast<unsigned>(table_rows) && i < pairs;
  };
  if constexpr (kRotate) {
    uint4 v[kPairs][kOffsets];  // at step u of a trip, pair i uses v[(u - i) mod kPairs]
#pragma unroll
    for (int i = 1; i < kPairs; ++i)
      if (static_cast<unsigned>(q + k0 - i) < static_cast<unsigned>(table_rows))
        Warp::load_a(v[kPairs - i], a - i * kOffsets * 32);
#pragma unroll 1
    for (; q <= q_last; q += kPairs, b += kPairs * b_stride, a += kPairs * kOffsets * 32) {
      if (is_steady()) {
#pragma unroll
        for (int u = 0; u < kPairs; ++u) {
          t.load_b(b + u * b_stride, plane);
          Warp::load_a(v[u], a + u * kOffsets * 32);
#pragma unroll
          for (int i = kPairs - 1; i >= 0; --i) t.multiply(i, v[(u - i + kPairs) % kPairs]);
        }
      } else {
#pragma unroll
        for (int u = 0; u < kPairs; ++u)
          if (q + u <= q_last) {
            t.load_b(b + u * b_stride, plane);
            if (q + k0 + u < table_rows) Warp::load_a(v[u], a + u * kOffsets * 32);
#pragma unroll
            for (int i = kPairs - 1; i >= 0; --i)
              if (meets(q + k0 + u, i)) t.multiply(i, v[(u - i + kPairs) % kPairs]);
          }
      }
    }
  } else {
#pragma unroll 1
    for (; q <= q_last; ++q, b += b_stride, a += kOffsets * 32) {
      t.load_b(b, plane);
      const bool all = is_steady();
#pragma unroll
      for (int i = 0; i < kPairs; ++i)
        if (all || meets(q + k0, i)) {
          uint4 v[kOffsets];
          Warp::load_a(v, a - i * kOffsets * 32);
          t.multiply(i, v);
        }
    }
  }
}

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ != 900
constexpr bool kSm90 = false;
#else
constexpr bool kSm90 = true;
#endif

template <bool kBf16, int kOffsets, int kPairs, int kGroups, int kChunks, bool kWhole, bool kRotate, int kWarps,
          int kBlocks, int kBlocksElsewhere, int kLine>
__global__ void __launch_bounds__(kWarps * 32, kSm90 ? kBlocks : kBlocksElsewhere)
    toeplitz_fwd_kernel(const __grid_constant__ ToeplitzFwdArgs a) {
  DYN_SMEM(smem);
  constexpr int kColumns = 8 / kLine;  // of a chunk
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, warps = blockDim.x >> 5;
  const int tiles = a.pair_tiles * a.chunk_tiles, channel = blockIdx.x / tiles, tile = blockIdx.x - channel * tiles;
  const int first_group = a.group0 + blockIdx.y * a.block_groups;
  const int pair0 = (kWhole ? tile : tile / a.chunk_tiles) * a.block_pairs, pairs = min(a.block_pairs, a.pairs - pair0);
  const int chunk0 = kWhole ? 0 : tile % a.chunk_tiles * a.block_chunks;
  const int chunks = kWhole ? kChunks : min(a.block_chunks, a.chunks - chunk0);
  const int columns = kWhole ? 1 : ceil_div(chunks, kChunks);  // of warp tiles
  const int stride = kWhole ? kChunks : a.in_chunks;           // input chunks between row pairs
  const int rows = ceil_div(pairs, kPairs), items = rows * columns * (a.block_groups / kGroups);

  uint4* table = reinterpret_cast<uint4*>(smem);
  unsigned char* input = smem + table_bytes(a.part_rows, kOffsets);
  unsigned char* scratch = input + a.block_groups * a.plane;
  const float bias = a.bias ? ptx::to_float<kBf16>(a.bias[channel]) : 0.f;

  ToeplitzFwdWarp<kBf16, kOffsets, kPairs, kGroups, kChunks, kWhole> t;
  // A filter too large for shared memory goes through in parts; a warp then has one item, whose sums stay in registers.
  const int passes = kWhole ? 1 : a.parts_down * a.parts_along;
#pragma unroll 1
  for (int pass = 0; pass < passes; ++pass) {
    const int down = kWhole ? 0 : pass / a.parts_along, along = kWhole ? 0 : pass % a.parts_along;
    const int k0 = down * a.part_rows, table_rows = min(a.part_rows, a.table_rows - k0), shift = a.shift - k0;
    const int d_first = kWhole ? -(kOffsets / 2) : a.d_first + along * kOffsets;
    const int q_low = max(a.q_first, pair0 - shift);
    const int q_high = min(a.q_end - 1, pair0 + pairs - 1 - shift + table_rows - 1);
    if (pass > 0) __syncthreads();  // every warp has finished with the part before
    load_input<kWhole ? kChunks : 0, kLine>(input, a, channel, first_group, q_low, max(0, q_high - q_low + 1),
                                     kWhole ? 0 : chunk0 + d_first, columns * kChunks + kOffsets - 1);
    ptx::cp_async_commit();
    uint16_t* filter = reinterpret_cast<uint16_t*>(scratch);
    load_filter<kOffsets, kLine>(filter, a, channel, a.ky0 + 2 * kLine * (k0 - 1) + 1,
                                 kColumns * (d_first - 1) + 1 + a.pad_left, filter_rows(table_rows, kLine));
    __syncthreads();
    build_table<kOffsets, kLine>(table, filter, table_rows);
    ptx::cp_async_wait<0>();
    __syncthreads();

    for (int item = warp; item < items; item += warps) {
      const int group = item / (rows * columns) * kGroups, column = kWhole ? 0 : item / rows % columns;
      const int pair = item % rows * kPairs, own_pairs = min(kPairs, pairs - pair);
      const int j = pair0 + pair, q = max(q_low, j - shift);
      const int q_last = min(q_high, j + own_pairs - 1 - shift + table_rows - 1);
      if (pass == 0) t.clear();
      sum_pairs<kRotate, kOffsets, kPairs>(
          t, table + (q - j + shift) * kOffsets * 32 + lane,
          input + group * a.plane + ((q - q_low) * stride + column * kChunks) * 256 + lane * 16, q, q_last,
          shift - j, table_rows, own_pairs, stride * 256, a.plane);
      if (pass + 1 < passes) continue;
#pragma unroll
      for (int g = 0; g < kGroups; ++g)
#pragma unroll
        for (int i = 0; i < kPairs; ++i)
          if (i < own_pairs)
            store_pair<kBf16, kChunks, kLine>(scratch + warp * transpose_bytes(kChunks), a, t.acc[g][i], bias, channel,
                                       first_group + group + g, j + i, chunk0 + column * kChunks, chunk0 + chunks);
    }
  }
}

}  // namespace replknet_ext::cuda
