// Small planes, bwd_weight: the products of toeplitz_weight (see toeplitz_weight/toeplitz_weight.cuh) on whole planes, without a ring of rows.
// A product is 2 output rows x 8 columns of grad by 8 columns of an input row, summed over 16 images; its sum belongs to
// a row offset dy and a chunk offset. Planes of up to 16 rows and columns take no more than 32 row offsets, 8 of each of 4
// warps: dy = dy_first + own + 4 j. An input row then meets every second row pair of a warp: it is loaded once for up to
// 4 of them, whose gradients stay in registers.
//
// Shared memory: a ring of kSmallStages groups of 16 images, x and grad of a group as [image][row][16 columns], zeros behind a
// row's end. A plane is copied word by word; an image takes an odd number of 16-byte units, so that ldmatrix finds 8
// images in different banks. A block has a channel and all images of the batch: no partial sums, no second launch.
// Diagonals, the bias gradient and what Inf and NaN do are toeplitz_weight's.
#pragma once
#include "../toeplitz_weight/toeplitz_weight.cuh"
#include "tile.cuh"
#include "variants.h"

namespace replknet_ext::cuda {

template <bool kBf16>
constexpr ToeplitzWeightKernelMath kSmallMath = kBf16 ? ToeplitzWeightKernelMath::bf16 : ToeplitzWeightKernelMath::f16;

// Sums over images, of a fragment of grad: a product with ones.
template <bool kBf16>
__device__ __forceinline__ void add_all(float (&sum)[4], uint4 grad) {
  constexpr uint32_t kOnes = kBf16 ? 0x3f803f80 : 0x3c003c00;
  const uint32_t ones[2] = {kOnes, kOnes};
  ptx::mma<kBf16>(sum, grad, ones);
}

// The planes of a channel, of 16 images; zeros for images past the batch. Behind a row's end there are zeros already.
// A warp copies 4 rows at once, of up to 8 words each.
__device__ __forceinline__ void load_planes(unsigned char* to, const SmallWeightArgs& a, int tensor, int first_image) {
  const ToeplitzWeightTensor& t = a.toeplitz.tensor[tensor];
  int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
  ptx::opaque(lane), ptx::opaque(warp);  // found again on every call: the registers belong to the sums
  const int words = t.w / 2, row = small_divide(lane, a.by_words[tensor]);
  const int pixels = t.h * t.w, row_step = 4 * t.w, pitch = a.pitch[tensor];
  const int rows = row < 4 ? (t.h - row + 3) / 4 : 0;  // of this lane; lanes left over copy nothing
  to += warp * pitch + row * 32 + (lane - row * words) * 4;
  const uint16_t* from = static_cast<const uint16_t*>(t.p) + 2 * lane +
                         (static_cast<int64_t>(first_image + warp) * a.toeplitz.c + blockIdx.x) * pixels;
  const int64_t image_step = static_cast<int64_t>(4) * a.toeplitz.c * pixels;
  const int left = a.toeplitz.n - first_image;
  const auto copy = [&](auto&& word) {
    int i = warp;
#pragma unroll 1
    for (; i < min(16, left); i += 4, to += 4 * pitch, from += image_step)
#pragma unroll
      for (int r = 0; r < 4; ++r)
        if (r < rows) word(to + r * 4 * 32, from + r * row_step);
#pragma unroll 1
    for (; i < 16; i += 4, to += 4 * pitch)
#pragma unroll 1
      for (int r = 0; r < rows; ++r) *reinterpret_cast<uint32_t*>(to + r * 4 * 32) = 0;
  };
  if (t.access >= 4) {
    copy([](unsigned char* at, const uint16_t* word) { ptx::cp_async<4>(at, word); });
  } else {
    copy([](unsigned char* at, const uint16_t* word) {
      *reinterpret_cast<uint32_t*>(at) =
          ptx::load_global(word) | static_cast<uint32_t>(ptx::load_global(word + 1)) << 16;
    });
  }
}

// What load_planes never writes, of the whole ring: columns behind a row's end and the last row of an odd number.
__device__ __forceinline__ void clear_gaps(unsigned char* ring, const SmallWeightArgs& a) {
#pragma unroll 1
  for (int tensor = 0; tensor < 2; ++tensor) {
    const ToeplitzWeightTensor& t = a.toeplitz.tensor[tensor];
    const int rows = t.h + (t.h & 1), all = kSmallStages * 16 * rows;
#pragma unroll 1
    for (int i = threadIdx.x; i < all; i += blockDim.x) {
      const int image = i / rows, row = i - image * rows, stage = image >> 4;
      uint32_t* at = reinterpret_cast<uint32_t*>(ring + stage * a.stage_bytes + tensor * 16 * a.pitch[0] +
                                                 (image & 15) * a.pitch[tensor] + row * 32);
#pragma unroll 1
      for (int word = row < t.h ? t.w / 2 : 0; word < 8; ++word) at[word] = 0;
    }
  }
}

template <bool kBf16, int kRows>
__device__ __forceinline__ void sum_planes(const SmallWeightArgs& a, unsigned char* smem) {
  constexpr int kRowWarps = 4, kPairs = 4, kAhead = kSmallStages - 1;  // kPairs: every second row pair of up to 8
  const int lane = threadIdx.x & 31, own = ptx::uniform(threadIdx.x >> 5);
  // of this warp's row offsets
  const int rows = (a.toeplitz.dy_end - a.toeplitz.dy_first - own + kRowWarps - 1) / kRowWarps;
  const bool sums_bias = a.toeplitz.grad_bias != nullptr;
  clear_gaps(smem, a);

  float acc[kRows][3][4], bias[4] = {0.f, 0.f, 0.f, 0.f};
#pragma unroll
  for (int i = 0; i < kRows * 3 * 4; ++i) (&acc[0][0][0])[i] = 0.f;
  // matrices of a fragment of grad: [images][row of the pair]; of x: [chunk][images]
  const int lane_grad = 16 * a.pitch[0] + ((lane >> 4) * 8 + (lane & 7)) * a.pitch[1] + (lane >> 3 & 1) * 32;
  const int lane_x = (lane & 15) * a.pitch[0] + (lane >> 4) * 16;
#pragma unroll 1
  for (int group = -kAhead; group < a.toeplitz.jobs; ++group) {
    if (group >= 0) {
      ptx::cp_async_wait<kAhead - 1>();
      __syncthreads();  // the group has arrived, and the place of the one before is free
    }
    if (const int next = group + kAhead; next < a.toeplitz.jobs)
#pragma unroll 1
      for (int tensor = 0; tensor < 2; ++tensor)
        load_planes(smem + next % kSmallStages * a.stage_bytes + tensor * 16 * a.pitch[0], a, tensor, next * 16);
    ptx::cp_async_commit();
    if (group < 0) continue;
    const unsigned char* const stage = smem + group % kSmallStages * a.stage_bytes;
#pragma unroll 1
    for (int first = 0; first < 2; ++first) {  // row pairs first, first + 2, ...
      const int pairs = (a.toeplitz.pairs - first + 1) / 2;
      uint4 grad[kPairs][2];
#pragma unroll
      for (int i = 0; i < kPairs; ++i)
        if (i < pairs)
#pragma unroll
          for (int c = 0; c < 2; ++c) {
            uint32_t v[4];
            ptx::ldmatrix_x4_trans(v, stage + lane_grad + (first + 2 * i) * 64 + c * 16);
            grad[i][c] = make_uint4(v[0], v[1], v[2], v[3]);
            if (sums_bias && ((first + 2 * i) & 3) == own) add_all<kBf16>(bias, grad[i][c]);
          }
      int row = 2 * first + a.toeplitz.dy_first - a.toeplitz.pad_top + own;
#pragma unroll
      for (int u = 0; u < kRows + kPairs - 1; ++u, row += kRowWarps) {
        if (static_cast<unsigned>(row) >= static_cast<unsigned>(a.toeplitz.tensor[0].h)) continue;
        uint32_t x[4];
        ptx::ldmatrix_x4_trans(x, stage + lane_x + row * 32);
#pragma unroll
        for (int i = 0; i < kPairs; ++i) {
          const int j = u - i;
          if (j < 0 || j >= kRows) continue;
          if (i < pairs && j < rows)
#pragma unroll
            for (int q = 0; q < 2; ++q)
#pragma unroll
              for (int c = 0; c < 2; ++c) ptx::mma<kBf16>(acc[j][q - c + 1], grad[i][c], x + 2 * q);
        }
      }
    }
  }
  ptx::cp_async_wait<0>();
  __syncthreads();  // shared memory now holds tiles and sums
  reinterpret_cast<float*>(smem + a.toeplitz.plane_bytes)[threadIdx.x] = bias[0] + bias[2];
  finish<kSmallMath<kBf16>, 3, kRows, true>(a.toeplitz, acc, smem);
}

// A lane's pair of a fragment: a pixel of two images that follow each other.
__device__ __forceinline__ uint32_t load_images(const unsigned char* pixel, int pitch, bool inside) {
  if (!inside) return 0;
  return *reinterpret_cast<const uint16_t*>(pixel) |
         static_cast<uint32_t>(*reinterpret_cast<const uint16_t*>(pixel + pitch)) << 16;
}

// Planes of up to 8 rows and columns, of any width: a warp has a channel and all of its row offsets, input row - first
// row of the output pair from -6 to 7. Of every image, the planes of a block's channels lie in shared memory as in
// global memory, at any half word; fragments are gathered from there.
template <bool kBf16>
__device__ __forceinline__ void sum_runs(const SmallWeightArgs& a, unsigned char* smem) {
  constexpr int kRows = 14, kPairs = 4, kAhead = kSmallStages - 1;
  const int lane = threadIdx.x & 31, channel = ptx::uniform(threadIdx.x >> 5), g = lane >> 2;
  const int channel0 = blockIdx.x * a.toeplitz.block_channels;
  const int channels = min(a.toeplitz.block_channels, a.toeplitz.c - channel0);
  const int h = a.toeplitz.tensor[0].h, w = a.toeplitz.tensor[0].w;
  const int ho = a.toeplitz.tensor[1].h, wo = a.toeplitz.tensor[1].w;
  const bool sums_bias = a.toeplitz.grad_bias != nullptr, works = channel < channels;
  float acc[kRows][1][4], bias[4] = {0.f, 0.f, 0.f, 0.f};
#pragma unroll
  for (int i = 0; i < kRows * 4; ++i) (&acc[0][0][0])[i] = 0.f;
  const int pitch[2] = {4 * a.run[0].pitch, 4 * a.run[1].pitch}, grad_at = 16 * pitch[0];
#pragma unroll 1
  for (int group = -kAhead; group < a.toeplitz.jobs; ++group) {
    if (group >= 0) {
      ptx::cp_async_wait<kAhead - 1>();
      __syncthreads();  // the group's runs have arrived, and the place of the group before is free
    }
    if (const int next = group + kAhead; next < a.toeplitz.jobs)
#pragma unroll 1
      for (int tensor = 0; tensor < 2; ++tensor)
        load_runs(smem + next % kSmallStages * a.stage_bytes + tensor * grad_at, a.run[tensor], a.toeplitz.n, a.toeplitz.c,
                  channel0, channels, next * 16, 16);
    ptx::cp_async_commit();
    if (group < 0 || !works) continue;
    // a lane's column, in the first of its images
    const unsigned char* x = smem + group % kSmallStages * a.stage_bytes + 2 * (lane & 3) * pitch[0] +
                             2 * (channel * a.run[0].pixels + g);
    const unsigned char* from = smem + group % kSmallStages * a.stage_bytes + grad_at + 2 * (lane & 3) * pitch[1] +
                                2 * (channel * a.run[1].pixels + g);
    uint4 grad[kPairs];
#pragma unroll
    for (int j = 0; j < kPairs; ++j, from += 4 * wo) {
      const bool first = g < wo && 2 * j < ho, second = g < wo && 2 * j + 1 < ho;
      grad[j].x = load_images(from, pitch[1], first), grad[j].y = load_images(from + 2 * wo, pitch[1], second);
      grad[j].z = load_images(from + 8 * pitch[1], pitch[1], first);
      grad[j].w = load_images(from + 8 * pitch[1] + 2 * wo, pitch[1], second);
      if (sums_bias) add_all<kBf16>(bias, grad[j]);
    }
#pragma unroll
    for (int row = 0; row < 8; ++row, x += 2 * w) {
      if (row >= h) break;
      const uint32_t b[2] = {load_images(x, pitch[0], g < w), load_images(x + 8 * pitch[0], pitch[0], g < w)};
#pragma unroll
      for (int j = 0; j < kPairs; ++j) ptx::mma<kBf16>(acc[row - 2 * j + 6][0], grad[j], b);
    }
  }
  ptx::cp_async_wait<0>();
  __syncthreads();  // shared memory now holds tiles and sums
  reinterpret_cast<float*>(smem + a.toeplitz.plane_bytes)[threadIdx.x] = bias[0] + bias[2];
  finish<kSmallMath<kBf16>, 1, kRows, true>(a.toeplitz, acc, smem);
}

// kChunks: 8-column chunks of a row.
template <bool kBf16, int kChunks, int kRows, int kWarps>
__global__ void __launch_bounds__(128, kWarps / 4) small_weight_kernel(const __grid_constant__ SmallWeightArgs a) {
  DYN_SMEM(smem);
  if constexpr (kChunks == 1) sum_runs<kBf16>(a, smem);
  else sum_planes<kBf16, kRows>(a, smem);
}

}  // namespace replknet_ext::cuda
