// Runs of whole planes between global and shared memory, for the kernels of small planes.
#pragma once
#include "../ptx.cuh"
#include "args.h"

namespace replknet_ext::cuda {

template <int kBytes>
struct SmallPiece {};
template <>
struct SmallPiece<2> {
  using Type = uint16_t;
};
template <>
struct SmallPiece<4> {
  using Type = uint32_t;
};
template <>
struct SmallPiece<8> {
  using Type = uint2;
};
template <>
struct SmallPiece<16> {
  using Type = uint4;
};

__device__ __forceinline__ int small_divide(int n, uint32_t reciprocal) {
  return static_cast<int>(static_cast<uint32_t>(n) * reciprocal >> 20);
}

// Bytes of the widest access for a run of so many elements: a block at the end of the channels has a shorter one.
__device__ __forceinline__ int run_access(int vec, int elements) {
  const int m = vec | elements * 2;
  return m & -m;
}

// The runs of `images` images from first_image on; zeros behind a run and for images past the batch.
template <int kBytes>
__device__ __forceinline__ void load_runs(unsigned char* to, const SmallTensor& t, int n, int c, int channel0,
                                          int elements, int first_image, int images) {
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, warps = blockDim.x >> 5;
  const int pieces = elements * 2 / kBytes;
#pragma unroll 1
  for (int i = warp; i < images; i += warps) {
    unsigned char* row = to + i * t.pitch * 4;
    const bool inside = first_image + i < n;
    const uint16_t* run = t.p + (static_cast<int64_t>(first_image + i) * c + channel0) * t.pixels;
    if (inside)
#pragma unroll 4
      for (int p = lane; p < pieces; p += 32) {
        if constexpr (kBytes == 2) reinterpret_cast<uint16_t*>(row)[p] = ptx::load_global(run + p);
        else ptx::cp_async<kBytes>(row + p * kBytes, run + p * (kBytes / 2));
      }
#pragma unroll 1
    for (int e = (inside ? elements : 0) + lane; e < 2 * t.pitch; e += 32) reinterpret_cast<uint16_t*>(row)[e] = 0;
  }
}

__device__ __forceinline__ void load_runs(unsigned char* to, const SmallTensor& t, int n, int c, int channel0,
                                          int channels, int first_image, int images) {
  const int elements = channels * t.pixels;
  switch (run_access(t.vec, elements)) {
    case 16: return load_runs<16>(to, t, n, c, channel0, elements, first_image, images);
    case 8: return load_runs<8>(to, t, n, c, channel0, elements, first_image, images);
    case 4: return load_runs<4>(to, t, n, c, channel0, elements, first_image, images);
    default: return load_runs<2>(to, t, n, c, channel0, elements, first_image, images);
  }
}

template <int kBytes>
__device__ __forceinline__ void store_runs(const unsigned char* from, const SmallTensor& t, int n, int c, int channel0,
                                           int elements, int first_image, int images) {
  using Piece = typename SmallPiece<kBytes>::Type;
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, warps = blockDim.x >> 5;
  const int pieces = elements * 2 / kBytes;
#pragma unroll 1
  for (int i = warp; i < images && first_image + i < n; i += warps) {
    const Piece* row = reinterpret_cast<const Piece*>(from + i * t.pitch * 4);
    uint16_t* run = const_cast<uint16_t*>(t.p) + (static_cast<int64_t>(first_image + i) * c + channel0) * t.pixels;
#pragma unroll 2
    for (int p = lane; p < pieces; p += 32) {
      Piece* at = reinterpret_cast<Piece*>(run) + p;
      if constexpr (kBytes == 16) *at = ptx::load_shared(row + p);
      else *at = row[p];
    }
  }
}

__device__ __forceinline__ void store_runs(const unsigned char* from, const SmallTensor& t, int n, int c, int channel0,
                                           int channels, int first_image, int images) {
  const int elements = channels * t.pixels;
  switch (run_access(t.vec, elements)) {
    case 16: return store_runs<16>(from, t, n, c, channel0, elements, first_image, images);
    case 8: return store_runs<8>(from, t, n, c, channel0, elements, first_image, images);
    case 4: return store_runs<4>(from, t, n, c, channel0, elements, first_image, images);
    default: return store_runs<2>(from, t, n, c, channel0, elements, first_image, images);
  }
}

// channels_last. A lane has two neighbouring pixels of the channels in an access, which become a word of each channel:
// planes of an image follow each other in shared memory, t.plane elements apart.
template <int kBytes>
struct SmallPixels {
  using Piece = typename SmallPiece<kBytes>::Type;
  static constexpr int kChannels = kBytes / 2, kBatch = 4;  // kBatch: accesses under way

  __device__ __forceinline__ static void join(uint32_t (&words)[kChannels], const Piece& even, const Piece& odd) {
    if constexpr (kBytes == 2) {
      words[0] = even | static_cast<uint32_t>(odd) << 16;
    } else {
      const uint32_t *a = reinterpret_cast<const uint32_t*>(&even), *b = reinterpret_cast<const uint32_t*>(&odd);
#pragma unroll
      for (int k = 0; k < kBytes / 4; ++k) {
        words[2 * k] = (a[k] & 0xffff) | b[k] << 16;
        words[2 * k + 1] = a[k] >> 16 | (b[k] & 0xffff0000);
      }
    }
  }

  // Zeros behind a plane and for images past the batch.
  __device__ __forceinline__ static void load(unsigned char* to, const SmallTensor& t, int n, int c, int channel0,
                                              int channels, int first_image, int images) {
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, warps = blockDim.x >> 5;
    const int pieces = channels / kChannels, all = pieces * (t.plane / 2);
    const uint32_t by_pieces = reciprocal(pieces);
#pragma unroll 1
    for (int i = warp; i < images; i += warps) {
      uint32_t* const image = reinterpret_cast<uint32_t*>(to + i * t.pitch * 4);
      const int pixels = first_image + i < n ? t.pixels : 0;
      const uint16_t* const from = t.p + static_cast<int64_t>(first_image + i) * t.pixels * c + channel0;
#pragma unroll 1
      for (int first = lane; first < all; first += 32 * kBatch) {
        Piece v[kBatch][2];
#pragma unroll
        for (int b = 0; b < kBatch; ++b) {
          const int e = first + 32 * b, pair = small_divide(e, by_pieces), piece = e - pair * pieces;
#pragma unroll
          for (int h = 0; h < 2; ++h) {
            v[b][h] = Piece{};
            const int64_t pixel = 2 * pair + h;
            if (pixel < pixels) v[b][h] = ptx::load_global(reinterpret_cast<const Piece*>(from + pixel * c) + piece);
          }
        }
#pragma unroll
        for (int b = 0; b < kBatch; ++b) {
          const int e = first + 32 * b, pair = small_divide(e, by_pieces), piece = e - pair * pieces;
          if (e >= all) continue;
          uint32_t words[kChannels];
          join(words, v[b][0], v[b][1]);
#pragma unroll
          for (int k = 0; k < kChannels; ++k) image[(piece * kChannels + k) * (t.plane / 2) + pair] = words[k];
        }
      }
    }
  }

  __device__ __forceinline__ static void store(const unsigned char* from, const SmallTensor& t, int n, int c,
                                               int channel0, int channels, int first_image, int images) {
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, warps = blockDim.x >> 5;
    const int pieces = channels / kChannels, all = pieces * ((t.pixels + 1) / 2);
    const uint32_t by_pieces = reciprocal(pieces);
#pragma unroll 1
    for (int i = warp; i < images && first_image + i < n; i += warps) {
      const uint32_t* const image = reinterpret_cast<const uint32_t*>(from + i * t.pitch * 4);
      uint16_t* const to = const_cast<uint16_t*>(t.p) + static_cast<int64_t>(first_image + i) * t.pixels * c + channel0;
#pragma unroll 2
      for (int e = lane; e < all; e += 32) {
        const int pair = small_divide(e, by_pieces), piece = e - pair * pieces;
        uint32_t words[kChannels];
#pragma unroll
        for (int k = 0; k < kChannels; ++k) words[k] = image[(piece * kChannels + k) * (t.plane / 2) + pair];
        Piece v[2];
        if constexpr (kBytes == 2) {
          v[0] = static_cast<uint16_t>(words[0]), v[1] = static_cast<uint16_t>(words[0] >> 16);
        } else {
          uint32_t *a = reinterpret_cast<uint32_t*>(&v[0]), *b = reinterpret_cast<uint32_t*>(&v[1]);
#pragma unroll
          for (int k = 0; k < kBytes / 4; ++k) {
            a[k] = (words[2 * k] & 0xffff) | words[2 * k + 1] << 16;
            b[k] = words[2 * k] >> 16 | (words[2 * k + 1] & 0xffff0000);
          }
        }
#pragma unroll
        for (int h = 0; h < 2; ++h)
          if (2 * pair + h < t.pixels)
            *(reinterpret_cast<Piece*>(to + static_cast<int64_t>(2 * pair + h) * c) + piece) = v[h];
      }
    }
  }
};

// kStore: from shared memory, else to it. t.vec divides the channels of every block, also of the last.
template <bool kStore>
__device__ __forceinline__ void move_pixels(unsigned char* shared, const SmallTensor& t, int n, int c, int channel0,
                                            int channels, int first_image, int images) {
  const auto move = [&](auto pixels) {
    if constexpr (kStore) pixels.store(shared, t, n, c, channel0, channels, first_image, images);
    else pixels.load(shared, t, n, c, channel0, channels, first_image, images);
  };
  switch (t.vec) {
    case 16: return move(SmallPixels<16>{});
    case 8: return move(SmallPixels<8>{});
    case 4: return move(SmallPixels<4>{});
    default: return move(SmallPixels<2>{});
  }
}

}  // namespace replknet_ext::cuda
