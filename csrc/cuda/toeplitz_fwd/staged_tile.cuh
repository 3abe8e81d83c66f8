// Tile loaders and stores of the staged Toeplitz kernels: either memory format to and from the layout of the products.
#pragma once
#include <type_traits>

#include "tile.cuh"

namespace replknet_ext::cuda {

// What products are made of. tf32: one m16n8k8 for 4 columns. bf16x3: an operand is hi + lo, both bf16, and a product is
// hi * hi + hi * lo + lo * hi. A tile has 2 rows x 8 columns x 8 slots in kUnit bytes, as [half][row][slot] x 16 bytes;
// halves are 8 columns in 16 bits (one half), columns 0-3 and 4-7 (tf32), or hi and lo of 8 columns (bf16x3).
enum class ToeplitzFwdMode { f16, bf16, tf32, bf16x3 };

template <ToeplitzFwdMode kMode>
struct ToeplitzFwdElement {
  static constexpr bool kFloat = kMode == ToeplitzFwdMode::tf32 || kMode == ToeplitzFwdMode::bf16x3;
  using Type = std::conditional_t<kFloat, float, uint16_t>;
  static constexpr int kBytes = kFloat ? 4 : 2;
  static constexpr int kHalves = kFloat ? 2 : 1;  // also weight fragments of a chunk offset
  static constexpr int kUnit = 256 * kHalves;
  static __device__ __forceinline__ float to_float(Type v) {
    if constexpr (kFloat) return v;
    else return ptx::to_float<kMode == ToeplitzFwdMode::bf16>(v);
  }
};

// v as hi + lo. Truncated where rounding would overflow, so that products of finite values by 1 are finite; of Inf and
// NaN lo is NaN.
__device__ __forceinline__ void split_bf16(float v, uint32_t* hi, uint32_t* lo) {
  uint32_t h = ptx::from_float<true>(v);
  const bool large = (h & 0x7fff) == 0x7f80;
  if (large) h = ptx::as_bits(v) >> 16;
  const float rest = v - ptx::to_float<true>(static_cast<uint16_t>(h));
  *hi = h;
  *lo = large ? ptx::as_bits(rest) >> 16 : ptx::from_float<true>(rest);
}

// Pairs of neighbours as words: hi halves and lo halves.
__device__ __forceinline__ void split_pair(float a, float b, uint32_t* hi, uint32_t* lo) {
  uint32_t hi_a, lo_a, hi_b, lo_b;
  split_bf16(a, &hi_a, &lo_a);
  split_bf16(b, &hi_b, &lo_b);
  *hi = hi_a | hi_b << 16;
  *lo = lo_a | lo_b << 16;
}

// The widest accesses an element's piece can be read and written with.
template <int kBytes>
__device__ __forceinline__ void read_words(uint32_t* v, const void* p) {
  if constexpr (kBytes == 16) {
    const uint4 u = *static_cast<const uint4*>(p);
    v[0] = u.x, v[1] = u.y, v[2] = u.z, v[3] = u.w;
  } else if constexpr (kBytes == 8) {
    const uint2 u = *static_cast<const uint2*>(p);
    v[0] = u.x, v[1] = u.y;
  } else if constexpr (kBytes == 4) {
    v[0] = *static_cast<const uint32_t*>(p);
  } else {
    v[0] = *static_cast<const uint16_t*>(p);
  }
}

template <int kBytes>
__device__ __forceinline__ void write_words(void* p, const uint32_t* v) {
  if constexpr (kBytes == 16) *static_cast<uint4*>(p) = make_uint4(v[0], v[1], v[2], v[3]);
  else if constexpr (kBytes == 8) *static_cast<uint2*>(p) = make_uint2(v[0], v[1]);
  else if constexpr (kBytes == 4) *static_cast<uint32_t*>(p) = v[0];
  else *static_cast<uint16_t*>(p) = static_cast<uint16_t>(v[0]);
}

// 8 columns of kCount channels, as they lie in memory: kWords words per column.
template <ToeplitzFwdMode kMode, int kCount>
struct ToeplitzFwdPiece {
  using Element = ToeplitzFwdElement<kMode>;
  static constexpr int kColumn = kCount * Element::kBytes;  // bytes
  static constexpr int kWords = kColumn < 4 ? 1 : kColumn / 4;
  uint32_t v[8][kWords];

  // Column e is pitch elements from column e - 1; columns that do not exist (from `columns` on) are zeros.
  __device__ __forceinline__ void read_pixels(const typename Element::Type* from, int64_t pitch, int columns) {
#pragma unroll
    for (int e = 0; e < 8; ++e, from += pitch) {
#pragma unroll
      for (int i = 0; i < kWords; ++i) v[e][i] = 0;
      if (e < columns) read_words<kColumn>(v[e], from);
    }
  }
  // Columns that are neighbours, kVec bytes at a time.
  template <int kVec>
  __device__ __forceinline__ void read_row(const float* from, int columns) {
#pragma unroll
    for (int e = 0; e < 8; e += kVec / 4) {
      uint32_t u[kVec / 4] = {};
      if (e < columns) read_words<kVec>(u, from + e);
#pragma unroll
      for (int i = 0; i < kVec / 4; ++i) v[e + i][0] = u[i];
    }
  }
  // Into the input tiles of each channel, `plane` bytes apart.
  __device__ __forceinline__ void put(unsigned char* to, int plane) const {
#pragma unroll
    for (int i = 0; i < kCount; ++i, to += plane) {
      uint32_t first[4], second[4];  // halves
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        if constexpr (kMode == ToeplitzFwdMode::tf32) {
          first[j] = ptx::to_tf32(ptx::as_float(v[j][i]));
          second[j] = ptx::to_tf32(ptx::as_float(v[j + 4][i]));
        } else if constexpr (kMode == ToeplitzFwdMode::bf16x3) {
          split_pair(ptx::as_float(v[2 * j][i]), ptx::as_float(v[2 * j + 1][i]), &first[j], &second[j]);
        } else {
          const uint32_t left = v[2 * j][i / 2], right = v[2 * j + 1][i / 2];
          first[j] = i % 2 == 0 ? (left & 0xffff) | right << 16 : left >> 16 | (right & 0xffff0000);
        }
      }
      ptx::store_shared(reinterpret_cast<uint4*>(to), make_uint4(first[0], first[1], first[2], first[3]));
      if constexpr (Element::kFloat)
        ptx::store_shared(reinterpret_cast<uint4*>(to + 256), make_uint4(second[0], second[1], second[2], second[3]));
    }
  }
  // From the output tiles of each channel: 16-bit or float elements, columns 4 to 7 of floats 256 bytes on.
  __device__ __forceinline__ void take(const unsigned char* from, int plane) {
#pragma unroll
    for (int i = 0; i < kCount; ++i, from += plane) {
      const uint4 a = ptx::load_shared(reinterpret_cast<const uint4*>(from));
      const uint32_t first[4] = {a.x, a.y, a.z, a.w};
      if constexpr (Element::kFloat) {
        const uint4 b = ptx::load_shared(reinterpret_cast<const uint4*>(from + 256));
        const uint32_t second[4] = {b.x, b.y, b.z, b.w};
#pragma unroll
        for (int j = 0; j < 4; ++j) v[j][i] = first[j], v[j + 4][i] = second[j];
      } else {
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          const uint32_t left = first[j] & 0xffff, right = first[j] >> 16;
          if (i % 2 == 0) v[2 * j][i / 2] = left, v[2 * j + 1][i / 2] = right;
          else v[2 * j][i / 2] |= left << 16, v[2 * j + 1][i / 2] |= right << 16;
        }
      }
    }
  }
  __device__ __forceinline__ void write_pixels(typename Element::Type* to, int64_t pitch, int columns) const {
#pragma unroll
    for (int e = 0; e < 8; ++e, to += pitch)
      if (e < columns) write_words<kColumn>(to, v[e]);
  }
  template <int kVec>
  __device__ __forceinline__ void write_row(float* to, int columns) const {
#pragma unroll
    for (int e = 0; e < 8; e += kVec / 4) {
      uint32_t u[kVec / 4];
#pragma unroll
      for (int i = 0; i < kVec / 4; ++i) u[i] = v[e + i][0];
      if (e < columns) write_words<kVec>(to + e, u);
    }
  }
};

// An access of kBytes: neighbouring columns of an NCHW row, neighbouring channels of a channels_last pixel, or one
// element of either.
enum class ToeplitzFwdAlong { row, pixel, none };

template <ToeplitzFwdAlong kAlong_, int kBytes_>
struct ToeplitzFwdAccess {
  static constexpr ToeplitzFwdAlong kAlong = kAlong_;
  static constexpr int kBytes = kBytes_;
  template <ToeplitzFwdMode kMode>
  __host__ __device__ static constexpr int channels() {
    return kAlong == ToeplitzFwdAlong::row ? 1 : kBytes / ToeplitzFwdElement<kMode>::kBytes;
  }
  static __device__ __forceinline__ bool channels_last(const ToeplitzFwdArgs& a) {
    return kAlong == ToeplitzFwdAlong::none ? a.channels_last : kAlong == ToeplitzFwdAlong::pixel;
  }
};

// Where a slot's piece of 8 columns lies in a tensor of [n, c, h, w] or [n, h, w, c].
template <class T>
struct ToeplitzFwdPlace {
  T* p;
  int64_t pitch;  // between columns
  int columns;    // how many exist from the piece's first on
};

template <class T>
__device__ __forceinline__ ToeplitzFwdPlace<T> place(T* tensor, const ToeplitzFwdArgs& a, bool last, int image,
                                                     int channel, int y, int x, int height, int width) {
  const bool inside = image < a.n && static_cast<unsigned>(y) < static_cast<unsigned>(height) && x >= 0;
  const int64_t pixels = static_cast<int64_t>(height) * width, pixel = static_cast<int64_t>(y) * width + x;
  if (last) return {tensor + (image * pixels + pixel) * a.c + channel, a.c, inside ? width - x : 0};
  return {tensor + (static_cast<int64_t>(image) * a.c + channel) * pixels + pixel, 1, inside ? width - x : 0};
}

// Input pairs [q_low, q_low + pairs) x chunks [chunk_low, chunk_low + chunks) of every channel and group, zeros outside
// the image, as [channel][group][pair][chunk] tiles.
template <ToeplitzFwdMode kMode, int kChunks, class Access>
__device__ __forceinline__ void load_tiles(unsigned char* smem, const ToeplitzFwdArgs& a, int channel0, int channels,
                                           int first_group, int q_low, int pairs, int chunk_low, int chunks_) {
  using Element = ToeplitzFwdElement<kMode>;
  constexpr int kCount = Access::template channels<kMode>();
  using Piece = ToeplitzFwdPiece<kMode, kCount>;
  constexpr int kBatch = Piece::kWords == 1 ? 2 : 1;  // pieces in flight: their loads leave before the first is stored
  const int chunks = kChunks ? kChunks : chunks_, stride = kChunks ? kChunks : a.in_chunks;
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, warps = blockDim.x >> 5, slot = lane & 7;
  const auto* x = reinterpret_cast<const typename Element::Type*>(a.x);
#pragma unroll 1
  for (int g = 0; g < a.block_groups; ++g) {
    const int s = (first_group + g) * 8 + slot, image = s >> a.split_log2;
    const int top = (s - (image << a.split_log2)) * a.split_rows + 2 * q_low - a.row_offset;
#pragma unroll 1
    for (int member = 0; member < channels; member += kCount) {
      unsigned char* to = smem + (member * a.block_groups + g) * a.plane + slot * 16;
#pragma unroll 1
      for (int u0 = warp * 4 + (lane >> 3); u0 < 2 * pairs * chunks; u0 += kBatch * warps * 4) {
        Piece piece[kBatch];
#pragma unroll
        for (int b = 0; b < kBatch; ++b) {
          const int u = u0 + b * warps * 4, r = u / chunks, c = u - r * chunks;
          const auto from = place(x, a, Access::channels_last(a), image, channel0 + member, top + r,
                                  (chunk_low + c) * 8, a.h, a.width);
          const int columns = r < 2 * pairs ? from.columns : 0;
          if constexpr (Access::kAlong == ToeplitzFwdAlong::row)
            piece[b].template read_row<Access::kBytes>(from.p, columns);
          else piece[b].read_pixels(from.p, from.pitch, columns);
        }
#pragma unroll
        for (int b = 0; b < kBatch; ++b) {
          const int u = u0 + b * warps * 4, r = u / chunks, c = u - r * chunks;
          if (r < 2 * pairs)
            piece[b].put(to + ((r >> 1) * stride + c) * Element::kUnit + (r & 1) * 128, a.block_groups * a.plane);
        }
      }
    }
  }
}

// Asks for NCHW rows of a channel's next images, so that their loads need not wait for memory.
__device__ __forceinline__ void prefetch_rows(const ToeplitzFwdArgs& a, int channel, int first_group, int q_low,
                                              int pairs) {
  const int slot = threadIdx.x & 7;
  for (int g = 0; g < a.block_groups; ++g) {
    const int s = (first_group + g) * 8 + slot, image = s >> a.split_log2;
    if (image >= a.n) continue;
    const int top = (s - (image << a.split_log2)) * a.split_rows + 2 * q_low - a.row_offset;
    const int64_t begin = static_cast<int64_t>(max(0, top)) * a.width;
    const int64_t end = static_cast<int64_t>(min(a.h, top + 2 * pairs)) * a.width;
    const float* plane = reinterpret_cast<const float*>(a.x) + (static_cast<int64_t>(image) * a.c + channel) * a.h * a.width;
#pragma unroll 1
    for (int64_t i = begin + (threadIdx.x >> 3) * 32; i < end; i += blockDim.x * 4) ptx::prefetch_l2(plane + i);
  }
}

// The block's outputs from where the warps have staged them, tiles of [channel][group][pair][chunk].
template <ToeplitzFwdMode kMode, class Access>
__device__ __forceinline__ void store_tiles(const unsigned char* smem, const ToeplitzFwdArgs& a, int channel0,
                                            int channels, int first_group, int pair0, int pairs, int chunk0, int chunks,
                                            int stride) {
  using Element = ToeplitzFwdElement<kMode>;
  constexpr int kCount = Access::template channels<kMode>();
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, warps = blockDim.x >> 5, slot = lane & 7;
  auto* y = reinterpret_cast<typename Element::Type*>(a.y);
#pragma unroll 1
  for (int g = 0; g < a.block_groups; ++g) {
    const int s = (first_group + g) * 8 + slot, image = s >> a.split_log2;
    const int top = (s - (image << a.split_log2)) * a.split_rows + 2 * pair0;
#pragma unroll 1
    for (int member = 0; member < channels; member += kCount) {
      const unsigned char* from = smem + (member * a.block_groups + g) * a.plane + slot * 16;
#pragma unroll 1
      for (int u = warp * 4 + (lane >> 3); u < 2 * pairs * chunks; u += warps * 4) {
        const int r = u / chunks, c = u - r * chunks;
        const auto to = place(y, a, Access::channels_last(a), image, channel0 + member, top + r, (chunk0 + c) * 8,
                              a.ho, a.wo);
        if (to.columns <= 0) continue;
        ToeplitzFwdPiece<kMode, kCount> piece;
        piece.take(from + ((r >> 1) * stride + c) * Element::kUnit + (r & 1) * 128, a.block_groups * a.plane);
        if constexpr (Access::kAlong == ToeplitzFwdAlong::row)
          piece.template write_row<Access::kBytes>(to.p, to.columns);
        else piece.write_pixels(to.p, to.pitch, to.columns);
      }
    }
  }
}

// Calls use(access) with the access that suits a tensor. 16-bit staged kernels serve channels_last only.
template <ToeplitzFwdMode kMode, class Use>
__device__ __forceinline__ void with_access(const ToeplitzFwdArgs& a, int bytes, const Use& use) {
  if (bytes == ToeplitzFwdElement<kMode>::kBytes) {
    use(ToeplitzFwdAccess<ToeplitzFwdAlong::none, ToeplitzFwdElement<kMode>::kBytes>());
  } else if (ToeplitzFwdElement<kMode>::kFloat && !a.channels_last) {
    if constexpr (ToeplitzFwdElement<kMode>::kFloat) {
      if (bytes == 16) use(ToeplitzFwdAccess<ToeplitzFwdAlong::row, 16>());
      else use(ToeplitzFwdAccess<ToeplitzFwdAlong::row, 8>());
    }
  } else {
    if (bytes == 16) use(ToeplitzFwdAccess<ToeplitzFwdAlong::pixel, 16>());
    else if (ToeplitzFwdElement<kMode>::kFloat || bytes == 8) use(ToeplitzFwdAccess<ToeplitzFwdAlong::pixel, 8>());
    else if constexpr (!ToeplitzFwdElement<kMode>::kFloat) use(ToeplitzFwdAccess<ToeplitzFwdAlong::pixel, 4>());
  }
}

// Filter rows ky_first ... of one channel with zeros around them; 16-bit elements twice, as load_filter does.
template <ToeplitzFwdMode kMode, int kOffsets>
__device__ __forceinline__ void load_staged_filter(typename ToeplitzFwdElement<kMode>::Type* to,
                                                   const ToeplitzFwdArgs& a, int channel, int ky_first, int kx_first,
                                                   int rows) {
  using Type = typename ToeplitzFwdElement<kMode>::Type;
  constexpr int kWidth = ToeplitzFwdElement<kMode>::kFloat ? float_filter_width(kOffsets) : filter_width(kOffsets);
  const Type* w = reinterpret_cast<const Type*>(a.w) + static_cast<size_t>(channel) * a.kh * a.kw;
#pragma unroll 2
  for (int i = threadIdx.x; i < rows * kWidth; i += blockDim.x) {
    const int r = i / kWidth, j = i - r * kWidth, ky = ky_first + r, kx = kx_first + j;
    Type v = 0;
    if (static_cast<unsigned>(ky) < static_cast<unsigned>(a.kh) && static_cast<unsigned>(kx) < static_cast<unsigned>(a.kw))
      v = w[static_cast<int64_t>(a.flip ? a.kh - 1 - ky : ky) * a.kw + (a.flip ? a.kw - 1 - kx : kx)];
    to[i] = v;
    if (!ToeplitzFwdElement<kMode>::kFloat && j > 0) to[rows * kWidth + i - 1] = v;
  }
}

// Weight fragments of float32 filters: table[k][d][half] as build_table's, whose R[ky] is
// tf32: w[ky][kx], kx = 8 (d + d_first) + 4 half + lane % 4 - lane / 4 + pad_left
// bf16x3: hi (half 0) or lo of build_table's pair
template <ToeplitzFwdMode kMode, int kOffsets>
__device__ __forceinline__ void build_float_table(uint4* table, const float* filter, int table_rows) {
  constexpr int kWidth = float_filter_width(kOffsets);
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, warps = blockDim.x >> 5;
  const int j = (kMode == ToeplitzFwdMode::tf32 ? lane & 3 : 2 * (lane & 3)) - (lane >> 2) + 7;
#pragma unroll 1
  for (int i = warp; i < table_rows * kOffsets; i += warps) {
    const int k = i / kOffsets, d = i - k * kOffsets;
    const float* f = filter + 2 * k * kWidth + 8 * d + j;
    uint32_t r[2][3];  // R[ky - 1], R[ky], R[ky + 1] of both halves
#pragma unroll
    for (int y = 0; y < 3; ++y) {
      if constexpr (kMode == ToeplitzFwdMode::tf32) {
        r[0][y] = ptx::to_tf32(f[y * kWidth]);
        r[1][y] = ptx::to_tf32(f[y * kWidth + 4]);
      } else {
        split_pair(f[y * kWidth], f[y * kWidth + 1], &r[0][y], &r[1][y]);
      }
    }
#pragma unroll
    for (int half = 0; half < 2; ++half)
      ptx::store_shared(table + (2 * i + half) * 32 + lane, make_uint4(r[half][1], r[half][0], r[half][2], r[half][1]));
  }
}

// Bias, activation and a warp's output pair into its tiles. Lanes of columns 4 to 7 take the odd slot first where
// elements are floats: all 32 then write to different banks.
template <ToeplitzFwdMode kMode, int kChunks>
__device__ __forceinline__ void stage_pair(unsigned char* to, const float (&acc)[kChunks][4], float bias, int activation) {
  using Element = ToeplitzFwdElement<kMode>;
  const int lane = threadIdx.x & 31, column = lane >> 2, slot_pair = lane & 3, swap = column >> 2;
#pragma unroll
  for (int c = 0; c < kChunks; ++c, to += Element::kUnit)
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      unsigned char* row = to + (e >> 1) * 128;
      if constexpr (Element::kFloat) {
        const float v = activate((swap ? acc[c][e ^ 1] : acc[c][e]) + bias, activation);
        *reinterpret_cast<float*>(row + swap * 256 + (2 * slot_pair + (e & 1 ^ swap)) * 16 + (column & 3) * 4) = v;
      } else {
        *reinterpret_cast<uint16_t*>(row + (2 * slot_pair + (e & 1)) * 16 + column * 2) =
            ptx::from_float<kMode == ToeplitzFwdMode::bf16>(activate(acc[c][e] + bias, activation));
      }
    }
}

}  // namespace replknet_ext::cuda
