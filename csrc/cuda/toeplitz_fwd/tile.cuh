// Tile loaders and stores of the Toeplitz kernels: input rows, weight fragments, output rows.
#pragma once
#include "../activation.cuh"
#include "../ptx.cuh"
#include "args.h"
#include "sizes.h"

namespace replknet_ext::cuda {

// line, here and below: rows of a line, see toeplitz_fwd.cuh.
// One lane's share of a row of a piece, kVec bytes by cp.async, or the whole row, of kColumns, where rows start anywhere
// (kVec 2). columns = how many columns of the share exist (<= 0: none).
template <int kVec, int kColumns = 8>
__device__ __forceinline__ void load_piece(unsigned char* dst, const uint16_t* src, int columns) {
  if constexpr (kVec == 16) {
    if (columns > 0) ptx::cp_async<16>(dst, src);
    else ptx::store_shared(reinterpret_cast<uint4*>(dst), make_uint4(0, 0, 0, 0));
  } else if constexpr (kVec == 8) {
    if (columns > 0) ptx::cp_async<8>(dst, src);
    else ptx::store_shared8(reinterpret_cast<uint2*>(dst), make_uint2(0, 0));
  } else if constexpr (kVec == 4) {
    if (columns > 0) ptx::cp_async<4>(dst, src);
    else *reinterpret_cast<uint32_t*>(dst) = 0;
  } else {  // aligned words inside the row, moved into place by half a word where the row starts at an odd element
    const int odd = static_cast<int>(reinterpret_cast<uintptr_t>(src) >> 1 & 1);
    const uint32_t* words = reinterpret_cast<const uint32_t*>(src - odd);
    constexpr int kWords = kColumns / 2;
    uint32_t v[kWords + 1];
#pragma unroll
    for (int i = 0; i <= kWords; ++i) {
      const int e = 2 * i - odd;  // the word holds columns e and e + 1
      const bool low = e >= 0 && e < columns, high = e + 1 < columns;
      v[i] = 0;
      if (i == kWords && !odd) continue;
      if (low && high) v[i] = words[i];
      else if (low) v[i] = src[e];
      else if (high) v[i] = static_cast<uint32_t>(src[e + 1]) << 16;
    }
    const int bits = 16 * odd;
#pragma unroll
    for (int i = 0; i < kWords; ++i) v[i] = ptx::funnel_shift_right(v[i], v[i + 1], bits);
    if constexpr (kWords == 4) ptx::store_shared(reinterpret_cast<uint4*>(dst), make_uint4(v[0], v[1], v[2], v[3]));
    else ptx::store_shared8(reinterpret_cast<uint2*>(dst), make_uint2(v[0], v[1]));
  }
}

// A row of a piece: the first `columns` of 2 * kWords.
template <int kWords>
__device__ __forceinline__ void store_piece(uint16_t* dst, const uint32_t (&u)[kWords], int columns, int vec) {
  constexpr int kColumns = 2 * kWords;
  if (kWords == 4 && vec == 16) {
    *reinterpret_cast<uint4*>(dst) = make_uint4(u[0], u[1], u[kWords - 2], u[kWords - 1]);
  } else if (vec >= 8) {
#pragma unroll
    for (int e = 0; e < kColumns; e += 4)
      if (e < columns) *reinterpret_cast<uint2*>(dst + e) = make_uint2(u[e / 2], u[e / 2 + 1]);
  } else if (vec == 4) {
#pragma unroll
    for (int e = 0; e < kColumns; e += 2)
      if (e < columns) *reinterpret_cast<uint32_t*>(dst + e) = u[e / 2];
  } else {
#pragma unroll
    for (int e = 0; e < kColumns; ++e)
      if (e < columns) dst[e] = static_cast<uint16_t>(u[e >> 1] >> (e & 1) * 16);
  }
}

// Chunks of one line that a warp copies together, of `pieces` it copies at once; narrow planes give it several lines.
__host__ __device__ constexpr int chunks_at_once(int chunks, int pieces) {
  return chunks == 1 || (chunks == 2 && pieces == 4) ? chunks : pieces;
}

// Input pairs [q_low, q_low + pairs) x chunks [chunk_low, chunk_low + chunks) of every group, zeros outside the image,
// as [group][pair][chunk][line of the pair][slot] x 16 bytes. kChunks > 0: chunks is known when compiling.
template <int kChunks, int kVec, int kLine>
__device__ __forceinline__ void load_rows(unsigned char* smem, const ToeplitzFwdArgs& a, int channel, int first_group,
                                          int q_low, int pairs, int chunk_low, int chunks_) {
  // A warp writes 512 contiguous bytes at a time where it can: [chunk or line][slot][part of the piece].
  constexpr int kColumns = 8 / kLine, kBytes = kVec == 2 ? 2 * kColumns : kVec;  // of a chunk, of a lane's share
  constexpr int kParts = 16 / kBytes, kPieces = 4 / kParts;
  constexpr int kAlong = chunks_at_once(kChunks, kPieces);
  constexpr int kDown = kPieces / kAlong;
  const int chunks = kChunks ? kChunks : chunks_, stride = kChunks ? kChunks : a.in_chunks;
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, warps = blockDim.x >> 5;
  const int part = lane % kParts, slot = lane / kParts & 7, piece = lane / (8 * kParts);
  const int along = piece % kAlong, down = piece / kAlong;
  const int in_line = part * kBytes / 2 / kColumns, in_row = part * kBytes / 2 % kColumns;  // the part's row and column
  for (int g = 0; g < a.block_groups; ++g) {
    const int s = (first_group + g) * 8 + slot, image = s >> a.split_log2;
    const int top = (s - (image << a.split_log2)) * a.split_rows + 2 * kLine * q_low - a.row_offset + in_line;
    const uint16_t* plane = a.x + (static_cast<size_t>(image) * a.c + channel) * a.h * a.width;
    unsigned char* to = smem + g * a.plane + slot * 16 + part * kBytes;
    for (int r = warp * kDown + down; r < 2 * pairs; r += warps * kDown) {
      const int iy = top + kLine * r;
      const bool inside = image < a.n && static_cast<unsigned>(iy) < static_cast<unsigned>(a.h);
      const uint16_t* row = plane + static_cast<int64_t>(iy) * a.width;
      for (int c = along; c < chunks; c += kAlong) {
        const int ix = (chunk_low + c) * kColumns + in_row;
        load_piece<kVec, kColumns>(to + ((r >> 1) * stride + c) * 256 + (r & 1) * 128, row + ix,
                                   inside && ix >= 0 ? a.width - ix : 0);
      }
    }
  }
}

template <int kChunks, int kLine = 1>
__device__ __forceinline__ void load_input(unsigned char* smem, const ToeplitzFwdArgs& a, int channel, int first_group,
                                           int q_low, int pairs, int chunk_low, int chunks) {
  if constexpr (kLine == 1) {
    if (a.in_vec == 16)
      return load_rows<kChunks, 16, kLine>(smem, a, channel, first_group, q_low, pairs, chunk_low, chunks);
  }
  if (a.in_vec >= 8) load_rows<kChunks, 8, kLine>(smem, a, channel, first_group, q_low, pairs, chunk_low, chunks);
  else if (a.in_vec == 4) load_rows<kChunks, 4, kLine>(smem, a, channel, first_group, q_low, pairs, chunk_low, chunks);
  else load_rows<kChunks, 2, kLine>(smem, a, channel, first_group, q_low, pairs, chunk_low, chunks);
}

// Filter rows ky_first ... of one channel with zeros around it, twice: the second copy is one column to the left, so
// that every pair of neighbours is an aligned word of one of them. warps: the first of the block, which do it.
template <int kOffsets, int kLine = 1>
__device__ __forceinline__ void load_filter(uint16_t* to, const ToeplitzFwdArgs& a, int channel, int ky_first,
                                            int kx_first, int rows, int warps = blockDim.x >> 5) {
  constexpr int kWidth = filter_width(kOffsets, kLine);
  constexpr int kBatch = 4;                       // rows in flight: their loads leave before the first is stored
  constexpr int kColumns = ceil_div(kWidth, 32);  // of a lane
  const uint16_t* w = a.w + static_cast<size_t>(channel) * a.kh * a.kw;
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
  for (int r0 = warp; r0 < rows; r0 += kBatch * warps) {
    uint16_t v[kBatch][kColumns];
#pragma unroll
    for (int b = 0; b < kBatch; ++b) {
      const int ky = ky_first + r0 + b * warps;
      const bool inside = r0 + b * warps < rows && static_cast<unsigned>(ky) < static_cast<unsigned>(a.kh);
      const uint16_t* row = w + static_cast<int64_t>(a.flip ? a.kh - 1 - ky : ky) * a.kw;
#pragma unroll
      for (int i = 0; i < kColumns; ++i) {
        const int kx = kx_first + 32 * i + lane;
        v[b][i] = 0;
        if (inside && static_cast<unsigned>(kx) < static_cast<unsigned>(a.kw)) v[b][i] = row[a.flip ? a.kw - 1 - kx : kx];
      }
    }
#pragma unroll
    for (int b = 0; b < kBatch; ++b)
#pragma unroll
      for (int i = 0; i < kColumns; ++i) {
        const int r = r0 + b * warps, j = 32 * i + lane;
        if (r >= rows || j >= kWidth) continue;
        to[r * kWidth + j] = v[b][i];
        if (j > 0) to[filter_copy(rows, kOffsets, kLine) + r * kWidth + j - 1] = v[b][i];
      }
  }
}

// Weight fragments from the staged filter: table[k][d] = {R[ky], R[ky - 1], R[ky + 1], R[ky]} of every lane,
// R[ky] = (w[ky][kx], w[ky][kx + 1]), kx = 8 (d + d_first) + 2 (lane % 4) - lane / 4 + pad_left. 4x4 tiles:
// {R[ky], R[ky - 2], R[ky + 2], R[ky]}; lane % 4 and lane / 4 are pixels of two rows, which move ky and kx.
template <int kOffsets, int kLine = 1>
__device__ __forceinline__ void build_table(uint4* table, const uint16_t* filter, int table_rows,
                                            int warps = blockDim.x >> 5) {
  constexpr int kWidth = filter_width(kOffsets, kLine), kColumns = 8 / kLine;
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
  const int in = 2 * (lane & 3), out = lane >> 2;  // pixels of an input and of an output line
  const int j = in % kColumns - out % kColumns + kColumns - 1, copy = j & 1;  // kx_first: that of j = 0 of the first d
  const uint16_t* from = filter + copy * filter_copy(filter_rows(table_rows, kLine), kOffsets, kLine) + j - copy +
                         (in / kColumns - out / kColumns + kLine - 1) * kWidth;
  for (int k = warp; k < table_rows; k += warps) {
#pragma unroll
    for (int d = 0; d < kOffsets; ++d) {
      const uint32_t* f = reinterpret_cast<const uint32_t*>(from + 2 * kLine * k * kWidth + kColumns * d);
      const uint32_t before = f[0], here = f[kLine * kWidth / 2], after = f[kLine * kWidth];
      ptx::store_shared(table + (k * kOffsets + d) * 32 + lane, make_uint4(here, before, after, here));
    }
  }
}

// Bias, activation and store of a warp's output pair: fragments are (pixel, slot) and go through the warp's scratch
// [slot][line of the pair][chunk] x 16 bytes, 16 more a slot so that writes of 4 slots fall into different banks.
template <bool kBf16, int kChunks, int kLine = 1>
__device__ __forceinline__ void store_pair(unsigned char* scratch, const ToeplitzFwdArgs& a,
                                           const float (&acc)[kChunks][4], float bias, int channel, int group, int pair,
                                           int chunk, int chunk_end) {
  constexpr int kSlot = (2 * kChunks + 1) * 16, kColumns = 8 / kLine, kWords = kColumns / 2;
  const int lane = threadIdx.x & 31, pixel = lane >> 2, slot_pair = lane & 3;
  __syncwarp();
#pragma unroll
  for (int c = 0; c < kChunks; ++c)
#pragma unroll
    for (int e = 0; e < 4; ++e)
      *reinterpret_cast<uint16_t*>(scratch + (2 * slot_pair + (e & 1)) * kSlot + ((e >> 1) * kChunks + c) * 16 +
                                   pixel * 2) = ptx::from_float<kBf16>(activate(acc[c][e] + bias, a.activation));
  __syncwarp();
  for (int i = lane; i < 16 * kChunks; i += 32) {
    const int c = i % kChunks, line = i / kChunks & 1, slot = i / (2 * kChunks);
    const int s = group * 8 + slot, image = s >> a.split_log2;
    const int oy = (s - (image << a.split_log2)) * a.split_rows + kLine * (2 * pair + line), ox = (chunk + c) * kColumns;
    if (image >= a.n || oy >= a.ho || ox >= a.wo || chunk + c >= chunk_end) continue;
    const uint4 v = ptx::load_shared(reinterpret_cast<const uint4*>(scratch + slot * kSlot + (line * kChunks + c) * 16));
    const uint32_t u[4] = {v.x, v.y, v.z, v.w};
    uint16_t* to = a.y + ((static_cast<size_t>(image) * a.c + channel) * a.ho + oy) * a.wo + ox;
#pragma unroll
    for (int row = 0; row < kLine; ++row, to += a.wo) {
      uint32_t own[kWords];
#pragma unroll
      for (int i = 0; i < kWords; ++i) own[i] = u[row * kWords + i];
      if (row == 0 || oy + row < a.ho) store_piece(to, own, a.wo - ox, a.out_vec);
    }
  }
}

}  // namespace replknet_ext::cuda
