// A thread's rows: how they come from global memory, become floats, and go back.
#pragma once
#include <type_traits>

#include "../ptx.cuh"
#include "args.h"
#include "variants.h"

namespace replknet_ext::cuda {

template <class T>
__device__ __forceinline__ float load_stored(const void* from, int64_t i, int dtype) {
  const T v = ptx::load_global(static_cast<const T*>(from) + i);
  if constexpr (sizeof(T) == 4) return v;
  else return dtype == 2 ? ptx::to_float<true>(v) : ptx::to_float<false>(v);
}

// A row of a thread's columns and their neighbours that kTaps taps meet, as it is loaded: words of 4 bytes.
template <class T, int kTaps, bool kLast>
struct StencilRow {
  static constexpr bool kHalf = sizeof(T) == 2;
  static constexpr int kChannels = stencil_channels(!kHalf, kLast), kColumns = stencil_columns(kLast);
  static constexpr int kIn = kColumns + kTaps - 1, kHalo = kLast ? kTaps / 2 : stencil_halo(kTaps);
  static constexpr int kSkip = kHalo - kTaps / 2;          // loaded columns before the first that is met
  static constexpr int kLoaded = kColumns + 2 * kHalo;     // columns
  static constexpr int kWords = kHalf && !kLast ? kLoaded / 2 : kLoaded;
  // of shared memory: stencil/variants.h
  static constexpr int kFilterRow = stencil_filter_row(kTaps, kChannels);
  static constexpr int kFilterPitch = stencil_filter_pitch(kTaps, kChannels);
  static constexpr int kPieces = stencil_ring_pieces(!kHalf, kLast);
  uint32_t words[kWords];

  // Bit i: column first + i is inside a row of that width.
  __device__ __forceinline__ static uint32_t inside(int first, int width) {
    uint32_t mask = 0;
#pragma unroll
    for (int i = 0; i < kLoaded; ++i)
      if (static_cast<unsigned>(first + i) < static_cast<unsigned>(width)) mask |= 1u << i;
    return mask;
  }

  // One piece of NCHW: kPiece columns from kAt on, all inside or all outside.
  template <class Piece, int kAt>
  __device__ __forceinline__ void piece(const T* row, uint32_t mask) {
    constexpr int kPiece = sizeof(Piece) / sizeof(T), kPieceWords = sizeof(Piece) / 4;
    constexpr int kWord = kAt * static_cast<int>(sizeof(T)) / 4;
    static_assert(kAt + kPiece <= kLoaded);
    Piece v{};
    if (mask >> kAt & 1) v = ptx::load_global(reinterpret_cast<const Piece*>(row + kAt));
    const uint32_t* const from = reinterpret_cast<const uint32_t*>(&v);
#pragma unroll
    for (int i = 0; i < kPieceWords; ++i) words[kWord + i] = from[i];
  }
  template <class Piece, int kAt, int kEnd>
  __device__ __forceinline__ void pieces(const T* row, uint32_t mask) {
    if constexpr (kAt < kEnd) {
      piece<Piece, kAt>(row, mask);
      pieces<Piece, kAt + static_cast<int>(sizeof(Piece) / sizeof(T)), kEnd>(row, mask);
    }
  }
  // The halo, in an access or two a side, around own columns in pieces.
  template <class Own>
  __device__ __forceinline__ void wide(const T* row, uint32_t mask) {
    if constexpr (kHalo == 6) {
      static_assert(!kHalf);
      piece<uint2, 0>(row, mask), piece<uint4, 2>(row, mask);
      piece<uint4, kHalo + kColumns>(row, mask), piece<uint2, kHalo + kColumns + 4>(row, mask);
    } else if constexpr (kHalo > 0) {
      using Small = typename std::conditional<kHalo * sizeof(T) == 8, uint2, uint32_t>::type;
      using Side = typename std::conditional<kHalo * sizeof(T) == 16, uint4, Small>::type;
      piece<Side, 0>(row, mask);
      piece<Side, kHalo + kColumns>(row, mask);
    }
    pieces<Own, kHalo, kHalo + kColumns>(row, mask);
  }

  // row: of the first loaded column and the thread's first channel. mask: columns to load, the others are zeros.
  // second: the thread's second channel exists.
  __device__ __forceinline__ void load(const T* row, const StencilTensor& t, uint32_t mask, bool second) {
    if constexpr (kLast) {
      if (kChannels == 1 || t.vec >= 2) {
#pragma unroll
        for (int i = 0; i < kIn; ++i, row += t.column) {
          words[i] = 0;
          if (mask >> i & 1) words[i] = ptx::load_global(reinterpret_cast<const uint32_t*>(row));
        }
      } else if constexpr (kHalf) {
#pragma unroll
        for (int i = 0; i < kIn; ++i, row += t.column) {
          words[i] = 0;
          if (mask >> i & 1) {
            words[i] = ptx::load_global(row);
            if (second) words[i] |= static_cast<uint32_t>(ptx::load_global(row + 1)) << 16;
          }
        }
      }
    } else if (t.vec == 16 / static_cast<int>(sizeof(T))) {
      wide<uint4>(row, mask);
    } else if (kHalf && t.vec == 4) {
      wide<uint2>(row, mask);
    } else if (t.vec == 2) {
      using Two = typename std::conditional<kHalf, uint32_t, uint2>::type;
      pieces<Two, kSkip / 2 * 2, kLoaded - kSkip / 2 * 2>(row, mask);
    } else {
#pragma unroll
      for (int i = 0; i < kWords; ++i) words[i] = 0;
#pragma unroll
      for (int i = kSkip; i < kSkip + kIn; ++i)
        if (mask >> i & 1) {
          if constexpr (kHalf) words[i / 2] |= static_cast<uint32_t>(ptx::load_global(row + i)) << (i % 2 * 16);
          else words[i] = ptx::load_global(reinterpret_cast<const uint32_t*>(row + i));
        }
    }
  }

  // The columns that are met, of every channel.
  template <bool kBf16>
  __device__ __forceinline__ void unpack(float (&x)[kIn][kChannels]) const {
#pragma unroll
    for (int i = 0; i < kIn; ++i)
#pragma unroll
      for (int v = 0; v < kChannels; ++v) {
        if constexpr (!kHalf) {
          x[i][v] = ptx::as_float(words[i + kSkip]);
        } else {
          const int half = kLast ? 2 * i + v : i + kSkip;
          const uint32_t word = words[half / 2];
          if constexpr (kBf16) x[i][v] = ptx::as_float(half % 2 ? word & 0xffff0000 : word << 16);
          else x[i][v] = ptx::to_float<false>(static_cast<uint16_t>(half % 2 ? word >> 16 : word));
        }
      }
  }
  __device__ __forceinline__ void floats(float (&x)[kIn][kChannels], int dtype) const {
    if (!kHalf || dtype == 2) unpack<kHalf>(x);
    else unpack<false>(x);
  }
  // To be used many times: else the compiler converts at every use.
  __device__ __forceinline__ void kept_floats(float (&x)[kIn][kChannels], int dtype) const {
    floats(x, dtype);
#pragma unroll
    for (int i = 0; i < kIn * kChannels && kHalf; ++i) ptx::opaque((&x[0][0])[i]);
  }
};

template <int kRows, int kTaps, int kChannels>
struct StencilWeightShared {
  static constexpr int kRing = stencil_ring_rows(kRows), kPitch = stencil_sums_pitch(kRows, kTaps, kChannels);
};

// Stores a thread's row of outputs; columns: how many of them exist.
template <class T, bool kLast, bool kBf16, int kColumns, int kChannels>
__device__ __forceinline__ void store_stencil_row(T* to, const float (&v)[kColumns][kChannels], const StencilTensor& t,
                                                  int columns, bool second) {
  constexpr bool kHalf = sizeof(T) == 2;
  if constexpr (!kHalf) {
    if (!kLast && t.vec == 4) {
#pragma unroll
      for (int i = 0; i < kColumns / 4 * 4; i += 4) {
        const uint4 quad{ptx::as_bits(v[i][0]), ptx::as_bits(v[i + 1][0]), ptx::as_bits(v[i + 2][0]),
                         ptx::as_bits(v[i + 3][0])};
        if (i < columns) ptx::store_global(reinterpret_cast<uint4*>(to + i), quad);
      }
      return;
    }
    if (!kLast && t.vec == 2) {
#pragma unroll
      for (int i = 0; i < kColumns / 2 * 2; i += 2)
        if (i < columns) {
          const uint2 pair{ptx::as_bits(v[i][0]), ptx::as_bits(v[i + 1][0])};
          ptx::store_global(reinterpret_cast<uint2*>(to + i), pair);
        }
      return;
    }
#pragma unroll
    for (int i = 0; i < kColumns; ++i, to += kLast ? t.column : 1)
      if (i < columns) *to = v[i][0];
  } else if constexpr (kLast) {
#pragma unroll
    for (int i = 0; i < kColumns; ++i, to += t.column) {
      const uint32_t word = ptx::pack_floats<kBf16>(v[i][0], v[i][1]);
      if (i >= columns) continue;
      if (t.vec >= 2) {
        ptx::store_global(reinterpret_cast<uint32_t*>(to), word);
      } else {
        to[0] = static_cast<T>(word);
        if (second) to[1] = static_cast<T>(word >> 16);
      }
    }
  } else {
    uint32_t word[kColumns / 2];
#pragma unroll
    for (int i = 0; i < kColumns / 2; ++i) word[i] = ptx::pack_floats<kBf16>(v[2 * i][0], v[2 * i + 1][0]);
    if (t.vec == 8) {
      ptx::store_global(reinterpret_cast<uint4*>(to), uint4{word[0], word[1], word[2], word[3]});
    } else if (t.vec == 4) {
#pragma unroll
      for (int i = 0; i < kColumns / 2; i += 2)
        if (2 * i < columns) ptx::store_global(reinterpret_cast<uint2*>(to + 2 * i), uint2{word[i], word[i + 1]});
    } else if (t.vec == 2) {
#pragma unroll
      for (int i = 0; i < kColumns / 2; ++i)
        if (2 * i < columns) ptx::store_global(reinterpret_cast<uint32_t*>(to + 2 * i), word[i]);
    } else {
#pragma unroll
      for (int i = 0; i < kColumns; ++i)
        if (i < columns) to[i] = static_cast<T>(word[i / 2] >> (i % 2 * 16));
    }
  }
}

}  // namespace replknet_ext::cuda
