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
  static constexpr int kElement = kMath == RtwKernelMath::tf32 || kMath == RtwKernelMath::bf16x3 ? 4 : 2;  // bytes
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
    if (low && high) v[i] = ptx::load_global(words + i);
    else if (low) v[i] = ptx::load_global(src + e);
    else if (high) v[i] = ptx::load_global(src + e + 1) << 16;
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

// Rows row0 ... of a group of slots, at most as many as by_rows divides by, chunks chunk0 ..., into `to`, a ring of `ring`
// rows, from `place` on.
struct RtwRows {
  unsigned char* to;
  int channel0, group, row0, rows, chunk0, place, ring, half_bytes;
  FastDivisor by_rows;
};

struct RtwItem {  // what a thread copies at a time: a chunk of one slot
  unsigned char* to;
  const unsigned char* from;
  int columns;  // that exist; <= 0: none
};

template <RtwKernelMath kMath>
__device__ __forceinline__ RtwItem find_item(const RtwArgs& a, const RtwTensor& t, const RtwRows& r, int rest) {
  using L = RtwLayout<kMath>;
  const int chunk = divide(rest, t.by_chunks), row = divide(rest, r.by_rows), in_block = divide(rest, a.by_channels);
  const int s = r.group * L::kSlots + rest, image = s >> a.split_log2, channel = r.channel0 + in_block;
  const int iy = r.row0 + row + (s - (image << a.split_log2)) * a.split_rows, ix = (r.chunk0 + chunk) * 8;
  int place = r.place + row;
  if (place >= r.ring) place -= r.ring;
  RtwItem item;
  item.to = r.to + ((place * a.block_channels + in_block) * t.chunks + chunk) * L::kChunk + rest * L::kPiece;
  item.from = static_cast<const unsigned char*>(t.p) +
              (((static_cast<int64_t>(image) * a.c + channel) * t.h + iy) * t.w + ix) * L::kElement;
  item.columns = image < a.n && channel < a.c && static_cast<unsigned>(iy) < static_cast<unsigned>(t.h) && ix >= 0
                     ? t.w - ix : 0;
  if (row >= r.rows) item.to = nullptr;
  return item;
}

template <int kBytes, int kPiece, int kElement>
__device__ __forceinline__ void copy_piece(const RtwItem& item) {
#pragma unroll
  for (int at = 0; at < kPiece; at += kBytes) {
    if (item.columns * kElement > at) ptx::cp_async<kBytes>(item.to + at, item.from + at);
    else if constexpr (kBytes == 16) ptx::store_shared(reinterpret_cast<uint4*>(item.to + at), make_uint4(0, 0, 0, 0));
    else if constexpr (kBytes == 8) *reinterpret_cast<uint2*>(item.to + at) = make_uint2(0, 0);
    else *reinterpret_cast<uint32_t*>(item.to + at) = 0;
  }
}

// channels_last: 8 columns of one channel or, of 16-bit types that allow it, of two.
template <RtwKernelMath kMath>
__device__ __forceinline__ void load_pixels(const RtwArgs& a, const RtwTensor& t, const RtwRows& r, int i) {
  using L = RtwLayout<kMath>;
  const int items = t.by_units.divisor * t.chunks * r.by_rows.divisor * L::kSlots;
#pragma unroll 1
  for (; i < items; i += blockDim.x) {
    int rest = i;
    const int unit = divide(rest, t.by_units), chunk = divide(rest, t.by_chunks), row = divide(rest, r.by_rows);
    if (row >= r.rows) continue;
    const int s = r.group * L::kSlots + rest, image = s >> a.split_log2;
    const int iy = r.row0 + row + (s - (image << a.split_log2)) * a.split_rows, ix = (r.chunk0 + chunk) * 8;
    const int in_block = unit * t.access / L::kElement, channel = r.channel0 + in_block;
    const bool inside = image < a.n && channel < a.c && static_cast<unsigned>(iy) < static_cast<unsigned>(t.h);
    int place = r.place + row;
    if (place >= r.ring) place -= r.ring;
    unsigned char* to = r.to + ((place * a.block_channels + in_block) * t.chunks + chunk) * L::kChunk + rest * L::kPiece;
    const unsigned char* from =
        static_cast<const unsigned char*>(t.p) +
        (((static_cast<int64_t>(image) * t.h + iy) * t.w + ix) * a.c + channel) * L::kElement;
    uint32_t v[8];
#pragma unroll
    for (int e = 0; e < 8; ++e, from += static_cast<int64_t>(a.c) * L::kElement) {
      v[e] = 0;
      if (!inside || static_cast<unsigned>(ix + e) >= static_cast<unsigned>(t.w)) continue;
      v[e] = L::kElement == 4 || t.access == 4 ? ptx::load_global(reinterpret_cast<const uint32_t*>(from))
                                               : ptx::load_global(reinterpret_cast<const uint16_t*>(from));
    }
    if constexpr (L::kElement == 4) {
      put_singles<kMath>(to, v, r.half_bytes);
    } else {
      uint32_t first[4], second[4];
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        first[e] = (v[2 * e] & 0xffff) | v[2 * e + 1] << 16;
        second[e] = v[2 * e] >> 16 | (v[2 * e + 1] & 0xffff0000);
      }
      ptx::store_shared(reinterpret_cast<uint4*>(to), make_uint4(first[0], first[1], first[2], first[3]));
      if (t.access == 4)  // c is even then: the second channel exists
        ptx::store_shared(reinterpret_cast<uint4*>(to + t.chunks * L::kChunk),
                          make_uint4(second[0], second[1], second[2], second[3]));
    }
  }
}

// Fetches rows; zeros outside the map, the batch and the channels. All is computed from the thread's number again on
// every call: the registers belong to the accumulators. kBatch: gathered pieces of a thread that are in flight together.
template <RtwKernelMath kMath, int kBatch>
__device__ __forceinline__ void load_rows(const RtwArgs& a, const RtwTensor& t, const RtwRows& r) {
  using L = RtwLayout<kMath>;
  if (r.rows <= 0) return;
  int i = threadIdx.x;
  ptx::opaque(i);
  if (a.channels_last) return load_pixels<kMath>(a, t, r, i);
  const int items = t.chunks * r.by_rows.divisor * a.block_channels * L::kSlots;
  if constexpr (kMath == RtwKernelMath::bf16x3) {
#pragma unroll 1
    for (; i < items; i += blockDim.x) {
      const RtwItem item = find_item<kMath>(a, t, r, i);
      if (!item.to) continue;
      uint32_t v[8];
#pragma unroll
      for (int e = 0; e < 8; e += 4) {
        if (t.access == 16) {
          uint4 q = make_uint4(0, 0, 0, 0);
          if (e < item.columns) q = ptx::load_global(reinterpret_cast<const uint4*>(item.from + e * 4));
          v[e] = q.x, v[e + 1] = q.y, v[e + 2] = q.z, v[e + 3] = q.w;
        } else {
#pragma unroll
          for (int k = e; k < e + 4; ++k)
            v[k] = k < item.columns ? ptx::load_global(reinterpret_cast<const uint32_t*>(item.from + k * 4)) : 0;
        }
      }
      put_singles<kMath>(item.to, v, r.half_bytes);
    }
  } else {
    if (L::kElement == 2 && t.access == 2) {
#pragma unroll 1
      for (; i < items; i += kBatch * blockDim.x) {
        unsigned char* to[kBatch];
        uint4 v[kBatch];
#pragma unroll
        for (int b = 0; b < kBatch; ++b) {
          to[b] = nullptr;
          if (b > 0 && i + b * static_cast<int>(blockDim.x) >= items) continue;
          const RtwItem item = find_item<kMath>(a, t, r, i + b * static_cast<int>(blockDim.x));
          to[b] = item.to;
          v[b] = gather_halves(reinterpret_cast<const uint16_t*>(item.from), item.to ? item.columns : 0);
        }
#pragma unroll
        for (int b = 0; b < kBatch; ++b)
          if (to[b]) ptx::store_shared(reinterpret_cast<uint4*>(to[b]), v[b]);
      }
      return;
    }
#pragma unroll 1
    for (; i < items; i += blockDim.x) {
      const RtwItem item = find_item<kMath>(a, t, r, i);
      if (!item.to) continue;
      if (t.access == 16) copy_piece<16, L::kPiece, L::kElement>(item);
      else if (t.access == 8) copy_piece<8, L::kPiece, L::kElement>(item);
      else copy_piece<4, L::kPiece, L::kElement>(item);
    }
  }
}

}  // namespace replknet_ext::cuda
