// RTw: filter gradient of a depthwise convolution (stride 1) on tensor cores.
//   dw[c][ky][kx] = sum over n, oy, ox of grad[n][c][oy][ox] * x[n][c][oy + ky - pad_top][ox + kx - pad_left]
// One product: m = 2 output rows x 8 columns of grad, n = 8 columns of one input row, k = 16 slots (tf32: 8). A slot is an
// image or, where the batch is small, a group of rows of one. The 16 x 8 result belongs to a (row offset, chunk offset)
// and is summed over the map in registers; dy = input row - first output row + pad_top, ky = dy or, in the second output
// row, dy - 1. A warp owns kRows row offsets x kOffsets chunk offsets.
// 4x4 tiles (kLine 2) are the same with lines in place of rows: a line is 2 rows of 4 columns, so that 16 bytes of a slot
// are still a line of a chunk, m = 4 x 4 of grad, n = 2 x 4 of x. A tap's row is ky = 2 dy + row of x - row of grad.
//
// Rows stream through rings in shared memory, stage by stage, across column tiles and groups of slots: one barrier a
// stage. At the end each warp sums the diagonals of its tiles; blocks write float32 partials of their share of the batch,
// and weight_sum adds these in a fixed order. No atomics: the same bits on every run.
//
// Inf and NaN: every tap that sees a non-finite value is non-finite. Products with the zeros beyond the edges of x and
// grad may turn more taps of that channel into NaN; never another channel.
#pragma once
#include "tile.cuh"
#include "variants.h"
#include "../weight_sum.cuh"

namespace replknet_ext::cuda {

__device__ __forceinline__ uint32_t to_tf32(uint32_t bits) { return ptx::to_tf32(ptx::as_float(bits)); }

template <ToeplitzWeightKernelMath kMath, int kOffsets, int kRows, int kChunks, bool kWhole>
struct ToeplitzWeightWarp {
  using L = ToeplitzWeightLayout<kMath>;
  static constexpr int kIn = kWhole ? kChunks : kChunks + kOffsets - 1;  // chunks of an input row
  float acc[kRows][kOffsets][4];
  uint4 a[L::kHalves][kChunks];

  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int i = 0; i < kRows * kOffsets * 4; ++i) (&acc[0][0][0])[i] = 0.f;
  }
  // Where a lane starts to read: in a chunk of two output rows `row` bytes apart, and in two chunks of an input row.
  __device__ __forceinline__ static int lane_a(int lane, int row) {
    if constexpr (kMath == ToeplitzWeightKernelMath::tf32) return (lane & 3) * L::kPiece + (lane >> 2) * 4;
    else return (lane >> 3 & 1) * row + ((lane >> 4) * 8 + (lane & 7)) * L::kPiece;
  }
  __device__ __forceinline__ static int lane_b(int lane) {
    if constexpr (kMath == ToeplitzWeightKernelMath::tf32) return (lane & 3) * L::kPiece + (lane >> 2) * 4;
    else return (lane >> 4) * L::kChunk + (lane & 15) * L::kPiece;
  }
  // p, here and below: with the lane's offset
  __device__ __forceinline__ static uint4 load_chunk(const unsigned char* p, int row) {
    if constexpr (kMath == ToeplitzWeightKernelMath::tf32) {
      const uint32_t* w = reinterpret_cast<const uint32_t*>(p);
      return make_uint4(w[0], w[row / 4], w[L::kPiece], w[row / 4 + L::kPiece]);  // kPiece words: 4 slots
    } else {
      uint32_t v[4];
      ptx::ldmatrix_x4_trans(v, p);
      return make_uint4(v[0], v[1], v[2], v[3]);
    }
  }
  __device__ __forceinline__ void load_a(const unsigned char* p, int row, int half_bytes) {
#pragma unroll
    for (int half = 0; half < L::kHalves; ++half)
#pragma unroll
      for (int c = 0; c < kChunks; ++c) {
        uint4 v = load_chunk(p + half * half_bytes + c * L::kChunk, row);
        if constexpr (kMath == ToeplitzWeightKernelMath::tf32)
          v = make_uint4(to_tf32(v.x), to_tf32(v.y), to_tf32(v.z), to_tf32(v.w));
        a[half][c] = v;
      }
  }
  // A chunk's sum, spread over lanes: 8 of them (a product with ones) or, in tf32, all, which keeps what tf32 would round.
  __device__ __forceinline__ static float sum_chunk(const unsigned char* p, int row, int half_bytes) {
    if constexpr (kMath == ToeplitzWeightKernelMath::tf32) {
      const uint4 v = load_chunk(p, row);
      return (ptx::as_float(v.x) + ptx::as_float(v.y)) + (ptx::as_float(v.z) + ptx::as_float(v.w));
    } else {
      constexpr uint32_t kOnes = kMath == ToeplitzWeightKernelMath::f16 ? 0x3c003c00 : 0x3f803f80;
      const uint32_t ones[2] = {kOnes, kOnes};
      float sum[4] = {0.f, 0.f, 0.f, 0.f};
#pragma unroll
      for (int half = 0; half < L::kHalves; ++half)
        ptx::mma<kMath != ToeplitzWeightKernelMath::f16>(sum, load_chunk(p + half * half_bytes, row), ones);
      return sum[0] + sum[2];
    }
  }
  __device__ __forceinline__ void product(float (&d)[4], int c, const uint32_t (&b)[L::kHalves][4], int at) {
    if constexpr (kMath == ToeplitzWeightKernelMath::tf32) {
      ptx::mma_tf32(d, a[0][c], b[0] + at);
    } else if constexpr (kMath == ToeplitzWeightKernelMath::bf16x3) {
      ptx::mma<true>(d, a[1][c], b[0] + at);
      ptx::mma<true>(d, a[0][c], b[1] + at);
      ptx::mma<true>(d, a[0][c], b[0] + at);
    } else {
      ptx::mma<kMath == ToeplitzWeightKernelMath::bf16>(d, a[0][c], b[0] + at);
    }
  }
  // The products of row offset j with an input row, of which the chunks [first, last) lie inside the image.
  __device__ __forceinline__ void multiply(int j, const unsigned char* row, int first, int last, int half_bytes) {
    uint32_t b[L::kHalves][4];
#pragma unroll
    for (int q = 0; q < kIn; ++q) {
      if constexpr (kMath == ToeplitzWeightKernelMath::tf32) {
        const uint32_t* w = reinterpret_cast<const uint32_t*>(row + q * L::kChunk);
        b[0][0] = to_tf32(w[0]), b[0][1] = to_tf32(w[L::kPiece]);
      } else if (q % 2 == 0) {
#pragma unroll
        for (int half = 0; half < L::kHalves; ++half) {
          if (q + 1 < kIn) ptx::ldmatrix_x4_trans(b[half], row + half * half_bytes + q * L::kChunk);
          else ptx::ldmatrix_x2_trans(b[half], row + half * half_bytes + q * L::kChunk);
        }
      }
      if (!kWhole && (q < first || q >= last)) continue;
#pragma unroll
      for (int i = 0; i < kOffsets; ++i) {
        const int d = kOffsets == 9 ? kOffsets - 1 - i : i;  // the order for which nvcc has registers enough
        const int c = kWhole ? q - d + kOffsets / 2 : q - d;
        if (c >= 0 && c < kChunks) product(acc[j][d], c, b, kMath == ToeplitzWeightKernelMath::tf32 ? 0 : q % 2 * 2);
      }
    }
  }
};

// The part of the filter and of the batch that a block computes, and where its sums go.
struct ToeplitzWeightPart {
  int channel0, dy0, dy_end, d_first;       // row offsets [dy0, dy_end), chunk offsets from d_first on
  int ky_low, ky_high, kx_low, kx_high;     // the taps it writes
  bool first;                               // the part that sums the bias gradient
};

template <int kOffsets, int kLine = 1>
__device__ __forceinline__ ToeplitzWeightPart find_part(const ToeplitzWeightArgs& a, int row_offsets) {
  ToeplitzWeightPart p;
  int x = blockIdx.x;
  ptx::opaque(x);
  const int parts = a.parts_down * a.parts_along, block = x / parts, part = x - block * parts;
  p.first = part == 0;
  const int down = part / a.parts_along, along = part - down * a.parts_along;
  p.channel0 = block * a.block_channels;
  // neighbours share one row offset (of lines of 2 rows: two) and one chunk offset, so that no tap has sums in both
  p.dy0 = a.dy_first + down * (row_offsets - kLine);
  p.dy_end = min(p.dy0 + row_offsets, a.dy_end);
  p.ky_low = down == 0 ? 0 : kLine * p.dy0;
  p.ky_high = down + 1 == a.parts_down ? a.kh : kLine * (p.dy0 + row_offsets - kLine);
  p.d_first = a.d_first + along * (kOffsets - 1);
  const int kx0 = 8 / kLine * p.d_first + a.pad_left;
  p.kx_low = along == 0 ? 0 : kx0;
  p.kx_high = along + 1 == a.parts_along ? a.kw : kx0 + 8 / kLine * (kOffsets - 1);
  return p;
}

__device__ __forceinline__ void store_sum(const ToeplitzWeightArgs& a, int64_t channel, int tap, float v) {
  const int taps = a.kh * a.kw;
  if (a.partial) {
    a.partial[(static_cast<int64_t>(blockIdx.y) * a.c + channel) * (taps + 1) + tap] = v;
    return;
  }
  void* to = tap == taps ? a.grad_bias : a.out;
  const int64_t i = tap == taps ? channel : channel * taps + tap;
  store_result(to, i, v, a.dtype);
}

// Diagonals: a product is a square of 8 x 8 for each output row of the pair (4x4 tiles: of 4 x 4 for each of 4 output rows
// and 2 input rows). The squares of row offset dy hold taps of ky = kLine dy + (x row) - (grad row), and kx = (columns of a
// chunk) (chunk offset) + (x column) - (grad column) + pad_left. A warp's shared memory holds a square's chunk offsets side
// by side, as one row per grad column, each shifted by one more, so that a diagonal stands upright; zeros where a row has
// none of it. A lane adds up 4 neighbouring diagonals, 16 bytes at a time.
// tile: this warp's; sums: [square][row offset][diagonal] of a channel.
template <int kOffsets, int kRows, int kLine = 1>
__device__ __forceinline__ void sum_diagonals(const ToeplitzWeightArgs& a, const float (&acc)[kRows][kOffsets][4],
                                              float* tile, float* sums, int own, int offsets) {
  constexpr int kSide = 8 / kLine, kSquares = squares(kLine), kSquare = square_floats(kOffsets, kLine);
  constexpr int kColumns = sum_columns(kOffsets, kLine), kPitch = kColumns + 4, kTile = tile_floats(kOffsets, kLine);
  constexpr int kQuads = kColumns / 4, kAtOnce = rows_at_once(kOffsets, kLine);
  const int lane = threadIdx.x & 31, m = lane >> 2, n = (lane & 3) * 2;  // pixels of grad (and m + 8) and x (and n + 1)
  for (int i = lane; i < kTile / 4; i += 32)
    reinterpret_cast<float4*>(tile)[i] = {0.f, 0.f, 0.f, 0.f};
  __syncwarp();
  // squares are numbered (grad row) * kLine + (x row)
  float* const to = tile + (m / kSide * kLine + n / kSide) * kSquare + m % kSide * (kPitch - 1) + kSide - 1 + n % kSide;
#pragma unroll
  for (int j = 0; j < kRows; j += kAtOnce) {
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i)
#pragma unroll
      for (int d = 0; d < (j + i < kRows ? kOffsets : 0); ++d)
#pragma unroll
        for (int k = 0; k < 4; ++k)
          to[(kSquares * i + k / 2 * (kSquares / 2)) * kSquare + kSide * d + k % 2] = acc[j + i][d][k];
    __syncwarp();
#pragma unroll
    for (int first = 0; first < kAtOnce * kSquares * kQuads; first += 32) {
      const int task = first + lane, row = task / (kSquares * kQuads), square = task / kQuads % kSquares, quad = task % kQuads;
      const float* const from = tile + (kSquares * row + square) * kSquare + 4 * quad;
      const int dy = own + a.row_warps * (j + row);
      if (row < kAtOnce && j + row < kRows && dy < offsets) {
        float4 v = *reinterpret_cast<const float4*>(from);
#pragma unroll
        for (int k = 1; k < kSide; ++k) {
          const float4 next = *reinterpret_cast<const float4*>(from + k * kPitch);
          v.x += next.x, v.y += next.y, v.z += next.z, v.w += next.w;
        }
        *reinterpret_cast<float4*>(sums + (square * offsets + dy) * kColumns + 4 * quad) = v;
      }
    }
    __syncwarp();
  }
}

// The block's sums, from its warps' tiles. All is found again, so that the products need not keep it in registers.
template <ToeplitzWeightKernelMath kMath, int kOffsets, int kRows, bool kWhole, int kLine = 1>
__device__ __forceinline__ void finish(const ToeplitzWeightArgs& a, const float (&acc)[kRows][kOffsets][4],
                                       unsigned char* smem) {
  using L = ToeplitzWeightLayout<kMath>;
  int thread = threadIdx.x;
  ptx::opaque(thread);
  const int lane = thread & 31, warp = thread >> 5, in_block = warp / a.row_warps, own = warp - in_block * a.row_warps;
  const ToeplitzWeightPart p = find_part<kOffsets, kLine>(a, a.row_warps * kRows);
  const bool sums_bias = a.grad_bias && p.first;
  float* const bias = reinterpret_cast<float*>(smem + a.plane_bytes * L::kHalves) + thread;
  constexpr int kColumns = sum_columns(kOffsets, kLine), kSquares = squares(kLine), kSide = 8 / kLine;
  const int offsets = p.dy_end - p.dy0, warps = blockDim.x >> 5;
  float* tiles = reinterpret_cast<float*>(smem);
  constexpr int kTile = tile_floats(kOffsets, kLine);
  float* sums = tiles + warps * kTile;
  float* const warp_sums = sums + in_block * kSquares * offsets * kColumns;
  sum_diagonals<kOffsets, kRows, kLine>(a, acc, tiles + warp * kTile, warp_sums, own, offsets);
  if (sums_bias) {  // lanes hold pixels (and, in tf32, slots): add them in a fixed order
    float v = *bias;
    if (kMath == ToeplitzWeightKernelMath::tf32) v += __shfl_xor_sync(~0u, v, 1), v += __shfl_xor_sync(~0u, v, 2);
    v += __shfl_xor_sync(~0u, v, 4), v += __shfl_xor_sync(~0u, v, 8), v += __shfl_xor_sync(~0u, v, 16);
    if (lane == 0) *bias = v;
  }
  __syncthreads();
  const int width = p.kx_high - p.kx_low, taps = (p.ky_high - p.ky_low) * width;
  for (int channel = 0; channel < a.block_channels && p.channel0 + channel < a.c; ++channel) {
    const float* own_sums = sums + channel * kSquares * offsets * kColumns;
    for (int i = threadIdx.x; i < taps; i += blockDim.x) {
      const int ky = p.ky_low + i / width, kx = p.kx_low + i % width;
      // kx = kSide (d_first + d) + x column - grad column + pad_left
      const int column = kx - a.pad_left - kSide * (kWhole ? -(kOffsets / 2) : p.d_first) + kSide - 1;
      float v = 0.f;
      if (column >= 0 && column < kColumns) {
#pragma unroll
        for (int square = 0; square < kSquares; ++square) {
          const int lines = ky - square % kLine + square / kLine, dy = lines / kLine - p.dy0;
          if (lines % kLine == 0 && dy >= 0 && dy < offsets) v += own_sums[(square * offsets + dy) * kColumns + column];
        }
      }
      store_sum(a, p.channel0 + channel, ky * a.kw + kx, v);
    }
    if (sums_bias && threadIdx.x == 0) {
      float v = 0.f;
      for (int w = 0; w < a.row_warps; ++w) v += bias[(channel * a.row_warps + w) * 32];
      store_sum(a, p.channel0 + channel, a.kh * a.kw, v);
    }
  }
}

template <ToeplitzWeightKernelMath kMath, int kOffsets, int kRows, int kChunks, bool kWhole, int kWarps, int kLine>
__global__ void __launch_bounds__(kWarps * 32, 1) toeplitz_weight_kernel(const __grid_constant__ ToeplitzWeightArgs a) {
  static_assert(kLine == 1 || kWhole);
  DYN_SMEM(smem);
  using L = ToeplitzWeightLayout<kMath>;
  using Warp = ToeplitzWeightWarp<kMath, kOffsets, kRows, kChunks, kWhole>;
  constexpr int kBatch = kOffsets * kRows <= 8 ? 2 : 1;  // few accumulators leave registers for more
  // the shuffle tells nvcc that a warp's number is the same in all its lanes
  const int lane = threadIdx.x & 31, warp = __shfl_sync(~0u, static_cast<int>(threadIdx.x >> 5), 0);
  const int in_block = warp / a.row_warps, own = warp - in_block * a.row_warps;
  const ToeplitzWeightPart p = find_part<kOffsets, kLine>(a, a.row_warps * kRows);
  const int row_base = p.dy0 - a.pad_top;  // input row of the first row offset at output row 0
  const int x_row = a.block_channels * Warp::kIn * L::kChunk, grad_row = a.block_channels * kChunks * L::kChunk;
  const int start = min(max(row_base, a.row_first), a.row_end);  // first input row of a job
  unsigned char* const grad = smem + a.x_bytes;

  // ---- fetching runs ahead of the products by a.ahead stages
  const int first_group = static_cast<int>(blockIdx.y) / a.tiles, first_tile = static_cast<int>(blockIdx.y) - first_group * a.tiles;
  int next_group = first_group, next_tile = first_tile, next_stage = 0, x_place = 0, grad_place = 0;
  const auto advance_tile = [&](int& tile) {  // to that of the block's next job; whether it is in a group further
    // Whole rows are one tile. Said where nvcc then needs fewer registers; with more chunks it spills on sm_120.
    if constexpr (kLine == 2 && kChunks <= 7) return false;
    tile += a.split_tiles;
    if (tile < a.tiles) return false;
    tile -= a.tiles;
    return true;
  };
  const int grad_stages = a.ahead + 1;
  const bool sums_bias = a.grad_bias && p.first;
  float* const bias = reinterpret_cast<float*>(smem + a.plane_bytes * L::kHalves);  // of every lane, its share
  bias[threadIdx.x] = 0.f;
  // rows [start, end_row(pair)) of a job are fetched for its first pairs; input_row(pair) is the first that a pair needs
  const auto end_row = [&](int pair) { return min(max(2 * pair + p.dy_end - a.pad_top, start), a.row_end); };
  const auto input_row = [&](int pair) { return min(max(2 * pair + row_base, start), a.row_end); };
  const auto fetch = [&](bool more) {
    if (more) {
      const int pair = next_stage * a.stage_pairs, pairs = min(a.stage_pairs, a.pairs - pair);
      const int begin = pair == 0 ? start : end_row(pair - 1), end = end_row(pair + pairs - 1);
#pragma unroll 1
      for (int i = 0; i < 2; ++i) {  // one copy of the code for both tensors
        const bool x = i == 0;
        load_rows<kMath, kBatch, kLine>(a, a.tensor[i],
                                 {x ? smem : grad, p.channel0, next_group, x ? begin : 2 * pair,
                                  x ? end - begin : 2 * pairs, next_tile * kChunks + (x && !kWhole ? p.d_first : 0),
                                  x ? x_place : grad_place * 2 * a.stage_pairs, x ? a.x_ring : grad_stages * 2 * a.stage_pairs, a.plane_bytes,
                                  x && next_stage == 0 ? a.by_burst : a.by_steady, kLine > 1 && x ? a.row_offset : 0});
      }
      x_place += end - begin;
      if (x_place >= a.x_ring) x_place -= a.x_ring;
      if (++next_stage == a.stages) {
        next_stage = 0;
        next_group += a.split_groups + advance_tile(next_tile);
      }
    }
    if (++grad_place == grad_stages) grad_place = 0;
    ptx::cp_async_commit();
  };
  Warp t;
  t.clear();
  int lane_a = Warp::lane_a(lane, grad_row) + in_block * kChunks * L::kChunk;
  int lane_b = Warp::lane_b(lane) + in_block * Warp::kIn * L::kChunk;
  if (kChunks * kOffsets < 30) ptx::opaque(lane_a), ptx::opaque(lane_b);  // else computed again for every row, to save registers
  // of the stage whose products are due; place: of input_row(pair) in its ring
  int tile = first_tile, pair = 0, place = 0;
  const auto advance = [&](int rows) {
    place += rows;
    if (place >= a.x_ring) place -= a.x_ring;
  };
  const int stages = (a.jobs - static_cast<int>(blockIdx.y) + a.splits - 1) / a.splits * a.stages;
#pragma unroll 1
  for (int stage = -a.ahead; stage < stages; ++stage) {
    if (stage >= 0) {
      if (a.ahead == 1) ptx::cp_async_wait<0>();
      else ptx::cp_async_wait<1>();
      __syncthreads();  // the stage's rows have arrived, those before it are free
    }
    fetch(stage + a.ahead < stages);
    if (stage < 0) continue;
    const int first = -(tile * kChunks + p.d_first);  // of the tile's input chunks, the first inside the image
    constexpr int kSide = 8 / kLine;  // columns of a chunk
    const int last = min(ceil_div(a.tensor[0].w, kSide) + first, ceil_div(a.tensor[1].w, kSide) - tile * kChunks + kOffsets - 1);
    const unsigned char* g = grad + grad_place * 2 * a.stage_pairs * grad_row + lane_a;  // the next to be fetched into
#pragma unroll 1
    for (const int stage_end = min(pair + a.stage_pairs, a.pairs); pair < stage_end; ++pair, g += 2 * grad_row) {
      const int row = input_row(pair);
      advance(row - input_row(pair - 1));
      if (sums_bias)  // the warps share the chunks
#pragma unroll 1
        for (int c = own; c < kChunks; c += a.row_warps)
          bias[threadIdx.x] += Warp::sum_chunk(g + c * L::kChunk, grad_row, a.plane_bytes);
      t.load_a(g, grad_row, a.plane_bytes);
      const int stop = min(a.row_end, 2 * pair + p.dy_end - a.pad_top);
      int r = 2 * pair + row_base + own;
#pragma unroll
      for (int j = 0; j < kRows; ++j, r += a.row_warps)
        if (r >= start && r < stop) {
          int at = place + r - row;
          if (at >= a.x_ring) at -= a.x_ring;
          t.multiply(j, smem + at * x_row + lane_b, first, last, a.plane_bytes);
        }
    }
    if (pair == a.pairs) {  // on to the next job
      advance(end_row(a.pairs - 1) - input_row(a.pairs - 1));
      pair = 0;
      advance_tile(tile);
    }
  }
  ptx::cp_async_wait<0>();
  __syncthreads();  // shared memory now holds tiles and sums

  finish<kMath, kOffsets, kRows, kWhole, kLine>(a, t.acc, smem);
}

}  // namespace replknet_ext::cuda
