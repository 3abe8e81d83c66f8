// Staged Toeplitz kernels: the mapping of toeplitz_fwd.cuh for channels_last tensors and for float32 (tf32 or bf16x3).
// A block has the input tiles of block_channels neighbouring channels in shared memory at once, so that an access of a
// channels_last tensor uses more of its 32-byte sector, and computes one channel after the other. Each warp has one item;
// when the sums of a channel are done, its outputs take the place of its input, and all are stored together at the end.
// For one channel a block can go on to the next images (turns) with the fragments it has.
// Shared memory: table [k][d][half][lane] x 16 bytes | input, then output, of [channel][group] | filter.
#pragma once
#include "toeplitz_fwd.cuh"
#include "staged_tile.cuh"

namespace replknet_ext::cuda {

// One warp's tile of float32 products: two ldmatrix halves a chunk, two fragments a chunk offset.
template <ToeplitzFwdMode kMode, int kOffsets, int kPairs, int kChunks, bool kWhole>
struct ToeplitzFwdFloatWarp {
  static constexpr int kIn = kWhole ? kChunks : kChunks + kOffsets - 1;
  float acc[1][kPairs][kChunks][4];
  uint32_t b[kIn][4];

  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int i = 0; i < kPairs * kChunks * 4; ++i) (&acc[0][0][0][0])[i] = 0.f;
  }
  __device__ __forceinline__ void load_b(const unsigned char* p, int) {
#pragma unroll
    for (int c = 0; c < kIn; ++c) ptx::ldmatrix_x4(b[c], p + c * 512);
  }
  __device__ __forceinline__ static void load_a(uint4 (&v)[2 * kOffsets], const uint4* table_row) {
#pragma unroll
    for (int d = 0; d < 2 * kOffsets; ++d) v[d] = ptx::load_shared(table_row + d * 32);
  }
  __device__ __forceinline__ void multiply(int pair, const uint4 (&v)[2 * kOffsets]) {
#pragma unroll
    for (int d = 0; d < kOffsets; ++d)
#pragma unroll
      for (int part = 0; part < (kMode == ToeplitzFwdMode::tf32 ? 2 : 3); ++part)
#pragma unroll
        for (int c = 0; c < kChunks; ++c) {
          const int in = kWhole ? c + d - kOffsets / 2 : c + d;
          if (in < 0 || in >= kIn) continue;
          if constexpr (kMode == ToeplitzFwdMode::tf32)
            ptx::mma_tf32(acc[0][pair][c], v[2 * d + part], &b[in][2 * part]);
          else ptx::mma<true>(acc[0][pair][c], v[2 * d + (part == 2)], &b[in][part == 1 ? 2 : 0]);
        }
  }
};

template <ToeplitzFwdMode kMode, int kOffsets, int kPairs, int kChunks, bool kWhole, int kWarps, int kBlocks,
          int kBlocksElsewhere>
__global__ void __launch_bounds__(kWarps * 32, kSm90 ? kBlocks : kBlocksElsewhere)
    toeplitz_staged_kernel(const __grid_constant__ ToeplitzFwdArgs a) {
  using Element = ToeplitzFwdElement<kMode>;
  using Type = typename Element::Type;
  constexpr int kQuads = kOffsets * Element::kHalves;
  DYN_SMEM(smem);
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
  const int tiles = a.pair_tiles * a.chunk_tiles, tile = blockIdx.x % tiles;
  const int channel0 = blockIdx.x / tiles * a.block_channels, channels = min(a.block_channels, a.c - channel0);
  const int pair0 = (kWhole ? tile : tile / a.chunk_tiles) * a.block_pairs, pairs = min(a.block_pairs, a.pairs - pair0);
  const int chunk0 = kWhole ? 0 : tile % a.chunk_tiles * a.block_chunks;
  const int chunks = kWhole ? kChunks : min(a.block_chunks, a.chunks - chunk0);
  const int columns = kWhole ? 1 : ceil_div(chunks, kChunks);  // of warp tiles
  const int stride = kWhole ? kChunks : a.in_chunks;           // input chunks between row pairs
  const int rows = ceil_div(pairs, kPairs);

  uint4* table = reinterpret_cast<uint4*>(smem);
  const int input_at = a.part_rows * kQuads * 512;  // offsets and not pointers, to save registers
  const int filter_at = input_at + a.block_channels * a.block_groups * a.plane;

  // the warp's item
  const bool works = warp < rows * columns * a.block_groups;
  const int group = warp / (rows * columns), column = kWhole ? 0 : warp / rows % columns, pair = warp % rows * kPairs;
  const int own_pairs = min(kPairs, pairs - pair), j = pair0 + pair;
  std::conditional_t<Element::kFloat, ToeplitzFwdFloatWarp<kMode, kOffsets, kPairs, kChunks, kWhole>,
                     ToeplitzFwdWarp<kMode == ToeplitzFwdMode::bf16, kOffsets, kPairs, 1, kChunks, kWhole>>
      t;

  // One channel after the other, each by parts of the filter; sums stay in registers. Input of all parts and channels
  // is loaded at once, or of one channel part by part.
  const int passes = a.parts_down * a.parts_along, steps = passes * channels;
  const int turns = Element::kFloat ? a.turns : 1;
  int k0, table_rows, shift, d_first, q_low, q_high;
  auto begin = [&](int pass) {
    k0 = (kWhole ? pass : pass / a.parts_along) * a.part_rows, table_rows = min(a.part_rows, a.table_rows - k0);
    shift = a.shift - k0, d_first = kWhole ? -(kOffsets / 2) : a.d_first + pass % a.parts_along * kOffsets;
    const int from = a.load_once ? a.shift : shift, to = a.load_once ? a.table_rows : table_rows;
    q_low = max(a.q_first, pair0 - from);
    q_high = min(a.q_end - 1, pair0 + pairs - 1 - from + to - 1);
  };
  auto load = [&](auto access, int first_group) {
    load_tiles<kMode, kWhole ? kChunks : 0, decltype(access)>(
        smem + input_at, a, channel0, channels, first_group, q_low, max(0, q_high - q_low + 1),
        kWhole ? 0 : chunk0 + d_first, columns * kChunks + kOffsets - 1);
  };
  auto stage_filter = [&](int channel) {
    load_staged_filter<kMode, kOffsets>(reinterpret_cast<Type*>(smem + filter_at), a, channel, a.ky0 + 2 * k0 - 1,
                                        8 * d_first - 7 + a.pad_left, 2 * table_rows + 1);
  };

#pragma unroll 1
  for (int turn = 0; turn < turns; ++turn) {
    const int first_group = a.group0 + (blockIdx.y * turns + turn) * a.block_groups;
    if (first_group * 8 >= a.n << a.split_log2) break;
    if (turn > 0) __syncthreads();  // the outputs before have been stored
    begin(0);
    with_access<kMode>(a, a.in_vec, [&](auto access) { load(access, first_group); });
#pragma unroll 1
    for (int step = 0; step < steps; ++step) {
      const int member = step / passes, pass = step - member * passes;
      begin(pass);
      if constexpr (!kWhole) {  // one element at a time: sums are in registers, and such filters are rare
        if (step > 0 && !a.load_once) load(ToeplitzFwdAccess<ToeplitzFwdAlong::none, Element::kBytes>(), first_group);
      }
      if (turn == 0 || steps > 1) {
        if (step == 0) {
          stage_filter(channel0);
          __syncthreads();
        }
        if constexpr (Element::kFloat)
          build_float_table<kMode, kOffsets>(table, reinterpret_cast<float*>(smem + filter_at), table_rows);
        else build_table<kOffsets>(table, reinterpret_cast<uint16_t*>(smem + filter_at), table_rows);
      }
      __syncthreads();
      if constexpr (Element::kFloat) {
        if (turn + 1 < turns && !a.channels_last)
          prefetch_rows(a, channel0, first_group + a.block_groups, q_low, q_high - q_low + 1);
      }
      if (step + 1 < steps) {  // the next filter while other warps multiply
        begin(pass + 1 < passes ? pass + 1 : 0);
        stage_filter(channel0 + (pass + 1 < passes ? member : member + 1));
        begin(pass);
      }
      if (works) {
        const int q = max(q_low, j - shift), q_last = min(q_high, j + own_pairs - 1 - shift + table_rows - 1);
        if (pass == 0) t.clear();
        sum_pairs<false, kQuads, kPairs>(
            t, table + (q - j + shift) * kQuads * 32 + lane,
            smem + input_at + (member * a.block_groups + group) * a.plane +
                ((q - q_low) * stride + column * kChunks) * Element::kUnit + lane * 16,
            q, q_last, shift - j, table_rows, own_pairs, stride * Element::kUnit, 0);
      }
      __syncthreads();  // nobody needs the table or this channel's input any more, the next filter is there
      if (!works || pass + 1 < passes) continue;
      const float bias = a.bias ? Element::to_float(reinterpret_cast<const Type*>(a.bias)[channel0 + member]) : 0.f;
#pragma unroll
      for (int i = 0; i < kPairs; ++i)
        if (i < own_pairs)
          stage_pair<kMode, kChunks>(smem + input_at + (member * a.block_groups + group) * a.plane +
                                         ((pair + i) * columns + column) * kChunks * Element::kUnit,
                                     t.acc[0][i], bias, a.activation);
    }
    __syncthreads();
    with_access<kMode>(a, a.out_vec, [&](auto access) {
      store_tiles<kMode, decltype(access)>(smem + input_at, a, channel0, channels, first_group, pair0, pairs, chunk0,
                                           chunks, columns * kChunks);
    });
  }
}

}  // namespace replknet_ext::cuda
