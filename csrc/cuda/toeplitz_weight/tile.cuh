// Shared-memory layout of toeplitz_weight and the loads into it.
#pragma once
#include "../ptx.cuh"
#include "args.h"

namespace replknet_ext::cuda {

enum class ToeplitzWeightKernelMath { f16, bf16, tf32, bf16x3 };

// Shared memory holds rows as [row][channel of the block][chunk][slot] x 8 columns. A chunk takes a few bytes more than
// its slots: neighbouring chunks of an image then start in different banks, for ldmatrix and for copies along a row.
// 4x4 tiles (kLine 2): [line][channel][chunk][slot] x 2 rows x 4 columns. Rows below are lines there.
template <ToeplitzWeightKernelMath kMath>
struct ToeplitzWeightLayout {
  static constexpr int kElement =
      kMath == ToeplitzWeightKernelMath::tf32 || kMath == ToeplitzWeightKernelMath::bf16x3 ? 4 : 2;  // bytes
  static constexpr int kSlots = kMath == ToeplitzWeightKernelMath::tf32 ? 8 : 16;   // of a product's contraction
  static constexpr int kPiece = kMath == ToeplitzWeightKernelMath::tf32 ? 32 : 16;  // bytes: 8 columns of one slot
  static constexpr int kChunk = kSlots * kPiece + (kMath == ToeplitzWeightKernelMath::tf32 ? 32 : 16);
  static constexpr int kHalves = kMath == ToeplitzWeightKernelMath::bf16x3 ? 2 : 1;  // high and low parts
};

// n becomes the quotient; returns the remainder.
__device__ __forceinline__ int divide(int& n, FastDivisor by) {
  const int q = static_cast<int>(static_cast<uint64_t>(static_cast<uint32_t>(n)) * by.multiplier >> 31);
  const int remainder = n - q * by.divisor;
  n = q;
  return remainder;
}

// 8 elements of a row that starts anywhere, the first `columns` of them, zeros after them: aligned words inside the row,
// moved by half a word where the piece starts at an odd element.
__device__ __forceinline__ uint4 gather_halves(const uint16_t* src, int columns) {
  const int odd = static_cast<int>(reinterpret_cast<uintptr_t>(src) >> 1 & 1);
  const uint32_t* words = reinterpret_cast<const uint32_t*>(src - odd);
  uint32_t v[5];
#pragma unroll
  for (int i = 0; i < 5; ++i) {
    const int e = 2 * i - odd;  // the word holds columns e and e + 1
    const bool low = e >= 0 && e < columns, high = e + 1 < columns;
    v[i] = 0;
    if (i == 4 && !odd) continue;
    if (low && high) v[i] = ptx::load_global(words + i);
    else if (low) v[i] = ptx::load_global(src + e);
    else if (high) v[i] = ptx::load_global(src + e + 1) << 16;
  }
  const int bits = 16 * odd;
  return make_uint4(ptx::funnel_shift_right(v[0], v[1], bits), ptx::funnel_shift_right(v[1], v[2], bits),
                    ptx::funnel_shift_right(v[2], v[3], bits), ptx::funnel_shift_right(v[3], v[4], bits));
}

// The same into shared memory, slower and in few registers.
template <int kColumns>
__device__ __forceinline__ void copy_halves(unsigned char* to, const uint16_t* src, int columns) {
#pragma unroll 1
  for (int e = 0; e < kColumns; e += 2) {
    uint32_t v = e < columns ? ptx::load_global(src + e) : 0;
    if (e + 1 < columns) v |= static_cast<uint32_t>(ptx::load_global(src + e + 1)) << 16;
    *reinterpret_cast<uint32_t*>(to + 2 * e) = v;
  }
}

// 4 float32 columns into a slot: as they are (tf32), or as the sum of two bfloat16 (bf16x3), half_bytes apart.
template <ToeplitzWeightKernelMath kMath>
__device__ __forceinline__ void put_singles(unsigned char* to, const uint32_t (&v)[4], int half_bytes) {
  if constexpr (kMath == ToeplitzWeightKernelMath::tf32) {
    ptx::store_shared(reinterpret_cast<uint4*>(to), make_uint4(v[0], v[1], v[2], v[3]));
  } else {
    uint32_t high[2], low[2];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float f = ptx::as_float(v[i]);
      const uint32_t h = ptx::from_float<true>(f);
      // what is left of an Inf is 0, not NaN: the sum of both stays an Inf
      const float rest = ptx::to_float<true>(static_cast<uint16_t>(h));
      const uint32_t l = ptx::from_float<true>(f == rest ? 0.f : f - rest);
      if (i & 1) high[i / 2] |= h << 16, low[i / 2] |= l << 16;
      else high[i / 2] = h, low[i / 2] = l;
    }
    *reinterpret_cast<uint2*>(to) = make_uint2(high[0], high[1]);
    *reinterpret_cast<uint2*>(to + half_bytes) = make_uint2(low[0], low[1]);
  }
}

// Rows row0 ... of a group of slots, at most as many as by_rows' groups of item_rows hold, chunks chunk0 ..., into `to`, a
// ring of `ring` rows, from `place` on.
struct ToeplitzWeightRows {
  unsigned char* to;
  int channel0, group, row0, rows, chunk0, place, ring, half_bytes;
  FastDivisor by_rows;
  int row_offset;  // of the first line
};

// What a thread copies: a chunk of one slot in several rows. It finds its place once and steps from row to row.
struct ToeplitzWeightItem {
  const unsigned char* from;  // in the first row; may lie outside the tensor
  int to;                     // bytes from the start of the ring
  int iy, left;               // input row, rows to copy
  int columns;                // from here to the end of a row; <= 0: there are none to copy
};

template <ToeplitzWeightKernelMath kMath, int kLine>
__device__ __forceinline__ ToeplitzWeightItem find_item(const ToeplitzWeightArgs& a, const ToeplitzWeightTensor& t,
                                                        const ToeplitzWeightRows& r, int rest) {
  using L = ToeplitzWeightLayout<kMath>;
  const int chunk = divide(rest, t.by_chunks), row = divide(rest, r.by_rows) * a.item_rows;
  const int unit = divide(rest, t.by_units);  // of the block's channels
  const int s = r.group * L::kSlots + rest, image = s >> a.split_log2;
  const int in_block = a.channels_last ? unit * t.access / L::kElement : unit, channel = r.channel0 + in_block;
  const int ix = (r.chunk0 + chunk) * (8 / kLine);
  ToeplitzWeightItem item;
  item.iy = kLine * (r.row0 + row) - r.row_offset + (s - (image << a.split_log2)) * a.split_rows;
  item.left = min(r.rows - row, a.item_rows);
  int place = r.place + row;
  if (place >= r.ring) place -= r.ring;
  item.to = ((place * a.block_channels + in_block) * t.chunks + chunk) * L::kChunk + rest * L::kPiece;
  const int64_t plane = a.channels_last ? static_cast<int64_t>(image) * t.h : (static_cast<int64_t>(image) * a.c + channel) * t.h;
  const int64_t pixel = (plane + item.iy) * t.w + ix;
  item.from = static_cast<const unsigned char*>(t.p) + (a.channels_last ? pixel * a.c + channel : pixel) * L::kElement;
  item.columns = image < a.n && channel < a.c && ix >= 0 ? t.w - ix : 0;
  return item;
}

template <int kBytes, int kPiece, int kElement>
__device__ __forceinline__ void copy_piece(unsigned char* to, const unsigned char* from, int columns) {
#pragma unroll
  for (int at = 0; at < kPiece; at += kBytes) {
    if (columns * kElement > at) ptx::cp_async<kBytes>(to + at, from + at);
    else if constexpr (kBytes == 16) ptx::store_shared(reinterpret_cast<uint4*>(to + at), make_uint4(0, 0, 0, 0));
    else if constexpr (kBytes == 8) *reinterpret_cast<uint2*>(to + at) = make_uint2(0, 0);
    else *reinterpret_cast<uint32_t*>(to + at) = 0;
  }
}

// channels_last: 8 columns of one channel or, of 16-bit types that allow it, of two, `second` bytes apart. Four at a time,
// to save registers.
template <ToeplitzWeightKernelMath kMath>
__device__ __forceinline__ void copy_pixels(unsigned char* to, const unsigned char* from, int columns, int64_t pixel,
                                            bool two, int second, int half_bytes) {
  using L = ToeplitzWeightLayout<kMath>;
#pragma unroll 1
  for (int part = 0; part < 2; ++part, columns -= 4, to += L::kPiece / 2) {
    uint32_t v[4];
#pragma unroll
    for (int e = 0; e < 4; ++e, from += pixel) {
      v[e] = 0;
      if (e < columns)
        v[e] = L::kElement == 4 || two ? ptx::load_global(reinterpret_cast<const uint32_t*>(from))
                                       : ptx::load_global(reinterpret_cast<const uint16_t*>(from));
    }
    if constexpr (L::kElement == 4) {
      put_singles<kMath>(to, v, half_bytes);
    } else {
      *reinterpret_cast<uint2*>(to) = make_uint2((v[0] & 0xffff) | v[1] << 16, (v[2] & 0xffff) | v[3] << 16);
      if (two)
        *reinterpret_cast<uint2*>(to + second) = make_uint2(v[0] >> 16 | (v[1] & 0xffff0000), v[2] >> 16 | (v[3] & 0xffff0000));
    }
  }
}

// NCHW float32 that is split on its way.
template <ToeplitzWeightKernelMath kMath>
__device__ __forceinline__ void copy_singles(unsigned char* to, const unsigned char* from, int columns, int access,
                                             int half_bytes) {
  uint32_t v[2][4];
#pragma unroll
  for (int part = 0; part < 2; ++part) {
    if (access == 16) {
      uint4 q = make_uint4(0, 0, 0, 0);
      if (4 * part < columns) q = ptx::load_global(reinterpret_cast<const uint4*>(from) + part);
      v[part][0] = q.x, v[part][1] = q.y, v[part][2] = q.z, v[part][3] = q.w;
    } else {
#pragma unroll
      for (int e = 0; e < 4; ++e)
        v[part][e] = 4 * part + e < columns ? ptx::load_global(reinterpret_cast<const uint32_t*>(from) + 4 * part + e) : 0;
    }
  }
  put_singles<kMath>(to, v[0], half_bytes);
  put_singles<kMath>(to + 8, v[1], half_bytes);
}

// Fetches rows; zeros outside the map, the batch and the channels. All is computed from the thread's number again on
// every call: the registers belong to the accumulators. kBatch: pieces of rows that start anywhere in flight together, 1
// where registers are few.
template <ToeplitzWeightKernelMath kMath, int kBatch, int kLine>
__device__ __forceinline__ void load_rows(const ToeplitzWeightArgs& a, const ToeplitzWeightTensor& t,
                                          const ToeplitzWeightRows& r) {
  using L = ToeplitzWeightLayout<kMath>;
  if (r.rows <= 0) return;
  const int row_bytes = a.block_channels * t.chunks * L::kChunk;
  const int items = t.chunks * r.by_rows.divisor * t.by_units.divisor * L::kSlots;
  const int64_t pitch = static_cast<int64_t>(t.w) * (a.channels_last ? a.c : 1) * L::kElement;
  int i = threadIdx.x;
  ptx::opaque(i);
#pragma unroll 1
  for (; i < items; i += blockDim.x) {
    ToeplitzWeightItem item = find_item<kMath, kLine>(a, t, r, i);
    const auto columns = [&] { return static_cast<unsigned>(item.iy) < static_cast<unsigned>(t.h) ? item.columns : 0; };
    const auto to = [&] { return r.to + item.to; };
    const auto next_row = [&] { ++item.iy, item.from += pitch; };
    const auto next = [&] {
      next_row(), --item.left;
      item.to += row_bytes;
      if (item.to >= r.ring * row_bytes) item.to -= r.ring * row_bytes;
    };
    if constexpr (kLine == 2) {  // two halves of a piece; NCHW in 16 bit alone
#pragma unroll 1
      for (; item.left > 0; next()) {
#pragma unroll 1
        for (int half = 0; half < 2; ++half) {
          if (half == 1) next_row();
          if (t.access >= 8) copy_piece<8, 8, 2>(to() + 8 * half, item.from, columns());
          else if (t.access == 4) copy_piece<4, 8, 2>(to() + 8 * half, item.from, columns());
          else copy_halves<4>(to() + 8 * half, reinterpret_cast<const uint16_t*>(item.from), columns());
        }
      }
    } else if (a.channels_last) {
#pragma unroll 1
      for (; item.left > 0; next())
        copy_pixels<kMath>(to(), item.from, columns(), static_cast<int64_t>(a.c) * L::kElement,
                           t.access > L::kElement, t.chunks * L::kChunk, r.half_bytes);
    } else if constexpr (kMath == ToeplitzWeightKernelMath::bf16x3) {
#pragma unroll 1
      for (; item.left > 0; next())
        copy_singles<kMath>(to(), item.from, columns(), t.access, r.half_bytes);
    } else if (L::kElement == 2 && t.access == 2) {
      if constexpr (kBatch == 1) {
#pragma unroll 1
        for (; item.left > 0; next()) copy_halves<8>(to(), reinterpret_cast<const uint16_t*>(item.from), columns());
      } else {
#pragma unroll 1
        while (item.left > 0) {
          unsigned char* at[kBatch];
          uint4 v[kBatch];
#pragma unroll
          for (int b = 0; b < kBatch; ++b, next()) {
            at[b] = item.left > 0 ? to() : nullptr;
            v[b] = gather_halves(reinterpret_cast<const uint16_t*>(item.from), item.left > 0 ? columns() : 0);
          }
#pragma unroll
          for (int b = 0; b < kBatch; ++b)
            if (at[b]) ptx::store_shared(reinterpret_cast<uint4*>(at[b]), v[b]);
        }
      }
    } else {
#pragma unroll 1
      for (; item.left > 0; next()) {
        if (t.access == 16) copy_piece<16, L::kPiece, L::kElement>(to(), item.from, columns());
        else if (t.access == 8) copy_piece<8, L::kPiece, L::kElement>(to(), item.from, columns());
        else copy_piece<4, L::kPiece, L::kElement>(to(), item.from, columns());
      }
    }
  }
}

}  // namespace replknet_ext::cuda
