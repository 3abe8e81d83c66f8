// Shared-memory layout of rt_weight and the loads into it.
#pragma once
#include "ptx.cuh"
#include "rt_weight_args.h"

namespace replknet_ext::cuda {

enum class RtwKernelMath { f16, bf16, tf32, bf16x3 };

// Shared memory holds rows as [row][channel of the block][chunk][slot] x 8 columns. A chunk takes a few bytes more than
// its slots: neighbouring chunks of an image then start in different banks, for ldmatrix and for copies along a row.
template <RtwKernelMath kMath>
struct RtwLayout {
  static constexpr bool kSingle = kMath == RtwKernelMath::tf32 || kMath == RtwKernelMath::bf16x3;  // float32 operands
  static constexpr int kSlots = kMath == RtwKernelMath::tf32 ? 8 : 16;   // of a product's contraction
  static constexpr int kPiece = kMath == RtwKernelMath::tf32 ? 32 : 16;  // bytes: 8 columns of one slot
  static constexpr int kChunk = kSlots * kPiece + (kMath == RtwKernelMath::tf32 ? 32 : 16);
  static constexpr int kHalves = kMath == RtwKernelMath::bf16x3 ? 2 : 1;  // high and low parts
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
    if (low && high) v[i] = words[i];
    else if (low) v[i] = src[e];
    else if (high) v[i] = static_cast<uint32_t>(src[e + 1]) << 16;
  }
  const int bits = 16 * odd;
  return make_uint4(ptx::funnel_shift_right(v[0], v[1], bits), ptx::funnel_shift_right(v[1], v[2], bits),
                    ptx::funnel_shift_right(v[2], v[3], bits), ptx::funnel_shift_right(v[3], v[4], bits));
}

// 8 float32 columns into a slot: as they are (tf32), or as the sum of two bfloat16 (bf16x3), half_bytes apart.
template <RtwKernelMath kMath>
__device__ __forceinline__ void put_singles(unsigned char* to, const uint32_t (&v)[8], int half_bytes) {
  if constexpr (kMath == RtwKernelMath::tf32) {
    ptx::store_shared(reinterpret_cast<uint4*>(to), make_uint4(v[0], v[1], v[2], v[3]));
    ptx::store_shared(reinterpret_cast<uint4*>(to + 16), make_uint4(v[4], v[5], v[6], v[7]));
  } else {
    uint32_t high[4], low[4];
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const float f = ptx::as_float(v[i]);
      const uint32_t h = ptx::from_float<true>(f);
      // what is left of an Inf is 0, not NaN: the sum of both stays an Inf
      const float rest = ptx::to_float<true>(static_cast<uint16_t>(h));
      const uint32_t l = ptx::from_float<true>(f == rest ? 0.f : f - rest);
      if (i & 1) high[i / 2] |= h << 16, low[i / 2] |= l << 16;
      else high[i / 2] = h, low[i / 2] = l;
    }
    ptx::store_shared(reinterpret_cast<uint4*>(to), make_uint4(high[0], high[1], high[2], high[3]));
    ptx::store_shared(reinterpret_cast<uint4*>(to + half_bytes), make_uint4(low[0], low[1], low[2], low[3]));
  }
}

struct RtwRows {  // rows row0 ..., at most as many as by_rows divides by, of a group of slots, chunks chunk0 ..., into `to`, a ring of `ring` rows, from place on
  unsigned char* to;
  int channel0, group, row0, rows, chunk0, place, ring, half_bytes;
  FastDivisor by_rows;
};

// Copies rows; zeros outside the map, the batch and the channels. All is recomputed from the thread's number on every
// call: the registers belong to the accumulators.
template <RtwKernelMath kMath>
__device__ __forceinline__ void load_rows(const RtwArgs& a, const RtwTensor& t, const RtwRows& r) {
  using L = RtwLayout<kMath>;
  constexpr int kElement = L::kSingle ? 4 : 2;
  if (r.rows <= 0) return;
  int i = threadIdx.x;
  ptx::opaque(i);
  if (a.channels_last) {
    const int wide = t.access;  // bytes of a pixel that a thread takes: one channel or, of 16-bit types, two
    const FastDivisor by_chunks = &t == &a.x ? a.by_x_chunks : a.by_grad_chunks;
    const int items = t.by_units.divisor * t.chunks * r.by_rows.divisor * L::kSlots;
#pragma unroll 1
    for (; i < items; i += blockDim.x) {
      int rest = i;
      const int unit = divide(rest, t.by_units), chunk = divide(rest, by_chunks), row = divide(rest, r.by_rows);
      if (row >= r.rows) continue;
      const int s = r.group * L::kSlots + rest, image = s >> a.split_log2;
      const int iy = r.row0 + row + (s - (image << a.split_log2)) * a.split_rows, ix = (r.chunk0 + chunk) * 8;
      const int in_block = unit * wide / kElement, channel = r.channel0 + in_block;
      const bool inside = image < a.n && channel < a.c && static_cast<unsigned>(iy) < static_cast<unsigned>(t.h);
      const int64_t pixel = (static_cast<int64_t>(image) * t.h + iy) * t.w + ix;
      int place = r.place + row;
      if (place >= r.ring) place -= r.ring;
      unsigned char* to = r.to + ((place * a.block_channels + in_block) * t.chunks + chunk) * L::kChunk + rest * L::kPiece;
      uint32_t v[8];
#pragma unroll
      for (int e = 0; e < 8; ++e) {
        v[e] = 0;
        if (inside && static_cast<unsigned>(ix + e) < static_cast<unsigned>(t.w)) {
          const unsigned char* from = static_cast<const unsigned char*>(t.p) + ((pixel + e) * a.c + channel) * kElement;
          if (L::kSingle || wide == 4) v[e] = *reinterpret_cast<const uint32_t*>(from);
          else v[e] = *reinterpret_cast<const uint16_t*>(from);
        }
      }
      if constexpr (L::kSingle) {
        put_singles<kMath>(to, v, r.half_bytes);
      } else {
        uint32_t first[4], second[4];
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          first[e] = (v[2 * e] & 0xffff) | v[2 * e + 1] << 16;
          second[e] = v[2 * e] >> 16 | (v[2 * e + 1] & 0xffff0000);
        }
        ptx::store_shared(reinterpret_cast<uint4*>(to), make_uint4(first[0], first[1], first[2], first[3]));
        if (wide == 4)  // c is even then: the second channel exists
          ptx::store_shared(reinterpret_cast<uint4*>(to + t.chunks * L::kChunk),
                            make_uint4(second[0], second[1], second[2], second[3]));
      }
    }
    return;
  }
  // a copy is `access` bytes or, where rows start anywhere or float32 is split, a whole chunk
  const bool pieces = kMath != RtwKernelMath::bf16x3 && t.access > 2;
  const int shift = !pieces ? 0 : t.access == 16 ? (L::kPiece == 32) : t.access == 8 ? (L::kPiece == 32) + 1
                                                                                     : (L::kPiece == 32) + 2;
  const int items = t.by_units.divisor * r.by_rows.divisor * a.block_channels * L::kSlots;
#pragma unroll 1
  for (; i < items; i += blockDim.x) {
    int rest = i;
    const int unit = divide(rest, t.by_units), row = divide(rest, r.by_rows), in_block = divide(rest, a.by_channels);
    if (row >= r.rows) continue;
    const int s = r.group * L::kSlots + rest, image = s >> a.split_log2, channel = r.channel0 + in_block;
    const int iy = r.row0 + row + (s - (image << a.split_log2)) * a.split_rows;
    const int chunk = unit >> shift, part = unit - (chunk << shift);
    const int ix = (r.chunk0 + chunk) * 8 + part * t.access / kElement;
    const int columns = image < a.n && channel < a.c && static_cast<unsigned>(iy) < static_cast<unsigned>(t.h) && ix >= 0
                            ? t.w - ix : 0;
    const unsigned char* from = static_cast<const unsigned char*>(t.p) +
                                (((static_cast<int64_t>(image) * a.c + channel) * t.h + iy) * t.w + ix) * kElement;
    int place = r.place + row;
    if (place >= r.ring) place -= r.ring;
    unsigned char* to = r.to + ((place * a.block_channels + in_block) * t.chunks + chunk) * L::kChunk +
                        rest * L::kPiece + part * t.access;
    if constexpr (kMath == RtwKernelMath::bf16x3) {
      uint32_t v[8];
#pragma unroll
      for (int e = 0; e < 8; ++e) v[e] = 0;
      if (t.access == 16) {
#pragma unroll
        for (int e = 0; e < 8; e += 4)
          if (e < columns) {
            const uint4 q = *reinterpret_cast<const uint4*>(from + e * 4);
            v[e] = q.x, v[e + 1] = q.y, v[e + 2] = q.z, v[e + 3] = q.w;
          }
      } else {
#pragma unroll
        for (int e = 0; e < 8; ++e)
          if (e < columns) v[e] = *reinterpret_cast<const uint32_t*>(from + e * 4);
      }
      put_singles<kMath>(to, v, r.half_bytes);
    } else if (columns <= 0 && t.access > 2) {
      if (t.access == 16) ptx::store_shared(reinterpret_cast<uint4*>(to), make_uint4(0, 0, 0, 0));
      else if (t.access == 8) *reinterpret_cast<uint2*>(to) = make_uint2(0, 0);
      else *reinterpret_cast<uint32_t*>(to) = 0;
    } else if (t.access == 16) {
      ptx::cp_async<16>(to, from);
    } else if (t.access == 8) {
      ptx::cp_async<8>(to, from);
    } else if (t.access == 4) {
      ptx::cp_async<4>(to, from);
    } else if constexpr (!L::kSingle) {
      ptx::store_shared(reinterpret_cast<uint4*>(to), gather_halves(reinterpret_cast<const uint16_t*>(from), columns));
    }
  }
}

}  // namespace replknet_ext::cuda
