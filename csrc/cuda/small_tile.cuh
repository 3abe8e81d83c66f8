// Runs of whole planes between global and shared memory, for the kernels of small planes.
#pragma once
#include "ptx.cuh"
#include "small_args.h"

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

}  // namespace replknet_ext::cuda
