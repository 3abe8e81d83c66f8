// Small planes, forward and bwd_input: a plane is a row of a matrix product.
//   out[n][o] = sum over input pixels i of in[n][i] * filter(i - o)
// m = 16 images, n = 8 output pixels, k = 16 input pixels, both counted along the plane and across its rows: nothing is
// padded but a plane's end (14x14: 196 to 200 pixels; 92 % of the products are taps, where every output sees every input).
// The filter stands on a canvas of (h + ho - 1) rows, zeros around it, whose pitch makes the place of a tap linear in the
// pixels: place(i) - place(o) + constant with place(pixel) = row * pitch + column. A lane finds a weight pair by one
// addition, whatever the filter's size and padding. Where planes have an even width, two neighbouring pixels are
// neighbours on the canvas: one word of one of two copies, the second an element to the left.
//
// A block computes `channels` channels of 16 kM images. Of those, its share of every image is one run of memory, which is
// copied as it is; results take its place. A warp has up to kN tiles of 8 outputs of one channel and all images. A block
// goes on to further channels or images, whose runs are fetched while it multiplies.
//
// channels_last: small_fwd_last below.
//
// Inf and NaN: every output of a plane is multiplied by every input, so a non-finite input can turn all outputs of its
// own plane into NaN (spill_rows, spill_columns: -1); never another image or channel.
#pragma once
#include "../activation.cuh"
#include "tile.cuh"
#include "variants.h"

namespace replknet_ext::cuda {

// The canvases of a block's channels. A warp has a canvas row at a time, several in flight.
template <bool kEven>
__device__ __forceinline__ void draw_canvases(unsigned char* to, const SmallFwdArgs& a, int channel0, int channels) {
  constexpr int kBatch = 4;
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, warps = blockDim.x >> 5;
  const int rows = a.h + a.ho - 1, all = channels * rows;
#pragma unroll 1
  for (int first = warp; first < all; first += kBatch * warps)
#pragma unroll 1
    for (int column = lane; column < a.canvas_pitch; column += 32) {
      uint16_t v[kBatch];
#pragma unroll
      for (int b = 0; b < kBatch; ++b) {
        const int r = first + b * warps, channel = r / rows;
        int ky = r - channel * rows - (a.ho - 1) + a.pad_top, kx = column - (a.wo - 1) + a.pad_left;
        const bool inside = r < all && static_cast<unsigned>(ky) < static_cast<unsigned>(a.kh) &&
                            static_cast<unsigned>(kx) < static_cast<unsigned>(a.kw);
        if (a.flip) ky = a.kh - 1 - ky, kx = a.kw - 1 - kx;
        v[b] = 0;
        if (inside) v[b] = ptx::load_global(a.w + (static_cast<int64_t>(channel0 + channel) * a.kh + ky) * a.kw + kx);
      }
#pragma unroll
      for (int b = 0; b < kBatch; ++b) {
        const int r = first + b * warps, channel = r / rows;
        if (r >= all) continue;
        const int e = (r - channel * rows) * a.canvas_pitch + column;
        uint16_t* canvas = reinterpret_cast<uint16_t*>(to + channel * a.canvas_bytes);
        canvas[e] = v[b];
        if (kEven && e > 0) canvas[a.copy_bytes / 2 + e - 1] = v[b];
      }
    }
}

template <bool kBf16, int kM, bool kEven>
struct SmallWarp {
  static constexpr int kN = kSmallTiles;
  float acc[kM][kN][4];
  const unsigned char* smem;
  const unsigned char* rows;  // a lane's images, at its first pair of inputs
  uint32_t column[kN];        // place on its canvas, in bytes of smem, of a lane's output pixel in each tile
  int skipped;                // 1: the channel starts in the middle of a word, whose first half belongs to another
  int k;                      // the first pixel of a step, counted from that word

  __device__ __forceinline__ uint32_t load_a(const SmallFwdArgs& a, int row, int word) const {
    return *reinterpret_cast<const uint32_t*>(rows + row * 8 * 4 * a.x.pitch + word * 4);
  }
  // Of the pair k, k + 1: what belongs to the plane.
  __device__ __forceinline__ uint32_t kept(int pixels, int k) const {
    return (k >= skipped && k < pixels + skipped ? 0xffffu : 0u) | (k + 1 < pixels + skipped ? 0xffff0000u : 0u);
  }
  __device__ __forceinline__ uint32_t place(const SmallFwdArgs& a, int k) const {  // bytes
    const int i = max(0, min(k - skipped, a.x.pixels - (kEven ? 2 : 1)));
    return 2u * (i + small_divide(i, a.by_width) * (a.canvas_pitch - a.width));
  }

  // 16 inputs (kHalf: 8). kEdge: some of the pairs are not of this plane.
  template <bool kHalf, bool kEdge>
  __device__ __forceinline__ void step(const SmallFwdArgs& a, int own) {
    constexpr int kHalves = kHalf ? 1 : 2;
    const int t = 2 * (threadIdx.x & 3);
    uint32_t b[kN][2], mask[2] = {~0u, ~0u};
#pragma unroll
    for (int h = 0; h < kHalves; ++h) {
      const uint32_t low = place(a, k + 8 * h + t), high = kEven ? 0 : place(a, k + 8 * h + t + 1);
#pragma unroll
      for (int j = 0; j < kN; ++j) {
        if constexpr (kEven)
          b[j][h] = *reinterpret_cast<const uint32_t*>(smem + (column[j] + low));
        else
          b[j][h] = *reinterpret_cast<const uint16_t*>(smem + (column[j] + low)) |
                    static_cast<uint32_t>(*reinterpret_cast<const uint16_t*>(smem + (column[j] + high))) << 16;
      }
      if constexpr (kEdge) mask[h] = kept(a.x.pixels, k + 8 * h + t);
    }
#pragma unroll
    for (int m = 0; m < kM; ++m) {
      uint4 v = make_uint4(load_a(a, 2 * m, 0), load_a(a, 2 * m + 1, 0), 0, 0);
      if constexpr (!kHalf) v.z = load_a(a, 2 * m, 4), v.w = load_a(a, 2 * m + 1, 4);
      if constexpr (kEdge) v.x &= mask[0], v.y &= mask[0], v.z &= mask[1], v.w &= mask[1];
#pragma unroll
      for (int j = 0; j < kN; ++j)
        if (j + 1 < kN || own == kN) {  // the plan gives full shares, or one tile less
          if constexpr (kHalf) ptx::mma_k8<kBf16>(acc[m][j], v, b[j]);
          else ptx::mma<kBf16>(acc[m][j], v, b[j]);
        }
    }
    rows += 32, k += 16;
  }

  __device__ __forceinline__ void sum(const SmallFwdArgs& a, int own) {
#pragma unroll
    for (int i = 0; i < kM * kN * 4; ++i) (&acc[0][0][0])[i] = 0.f;
    k = 0;
    const int all = a.x.pixels + skipped, whole = all & ~15;
    if (!kEven && whole > 0) step<false, true>(a, own);
#pragma unroll 1
    while (k < whole) step<false, false>(a, own);
    if (all - k > 8) step<false, true>(a, own);
    else if (all > k) step<true, true>(a, own);
  }
};

// A warp's results into its channel's planes, which are `plane` elements apart. buffer() is found at every store: it takes
// no register.
template <bool kBf16, int kM, bool kEven, class Buffer>
__device__ __forceinline__ void put_results(const SmallWarp<kBf16, kM, kEven>& s, const SmallFwdArgs& a,
                                            const Buffer& buffer, int channel, int plane, int tile0, int own,
                                            int thread, float bias) {
#pragma unroll
  for (int j = 0; j < kSmallTiles; ++j) {
    const int o = (tile0 + j) * 8 + 2 * (thread & 3), at = channel * plane + o;
    if (j >= own || o >= a.y.pixels) continue;
#pragma unroll
    for (int r = 0; r < 2 * kM; ++r) {
      const float* sum = &s.acc[r / 2][j][r % 2 * 2];
      uint16_t* to = reinterpret_cast<uint16_t*>(buffer() + (8 * r + (thread >> 2 & 7)) * 4 * a.y.pitch) + at;
      const uint32_t low = ptx::from_float<kBf16>(activate(sum[0] + bias, a.activation));
      const uint32_t high = ptx::from_float<kBf16>(activate(sum[1] + bias, a.activation));
      if constexpr (kEven) {
        *reinterpret_cast<uint32_t*>(to) = low | high << 16;
      } else {
        to[0] = static_cast<uint16_t>(low);
        if (o + 1 < a.y.pixels) to[1] = static_cast<uint16_t>(high);
      }
    }
  }
}

// A warp's share of a channel's tiles: as many as the others of its channel have, or one less.
struct SmallShare {
  int channel, tile0, own;  // of those that a block computes at the same time
};
__device__ __forceinline__ SmallShare share_of(const SmallFwdArgs& a, int warp) {
  const int channel = warp / a.channel_warps, part = warp - channel * a.channel_warps;
  const int least = a.tiles / a.channel_warps, more = a.tiles - least * a.channel_warps;
  return {channel, part * least + min(part, more), least + (part < more)};
}

// Where on the canvas at `canvas` a warp's output pixels are, lane by lane.
template <bool kBf16, int kM, bool kEven>
__device__ __forceinline__ void find_columns(SmallWarp<kBf16, kM, kEven>& s, const SmallFwdArgs& a, SmallShare share,
                                             int canvas) {
  const int origin = (a.ho - 1) * a.canvas_pitch + a.wo - 1, g = static_cast<int>(threadIdx.x & 31) >> 2;
#pragma unroll
  for (int j = 0; j < kSmallTiles; ++j) {
    const int o = min((share.tile0 + min(j, share.own - 1)) * 8 + g, a.y.pixels - 1);
    const int e = origin - o - small_divide(o, a.by_wo) * (a.canvas_pitch - a.wo);
    s.column[j] = canvas + (kEven && (e & 1) ? a.copy_bytes + 2 * (e - 1) : 2 * e);
  }
}

template <bool kBf16, int kM, bool kEven>
__device__ __forceinline__ void small_fwd_runs(const SmallFwdArgs& a, unsigned char* smem) {
  using Warp = SmallWarp<kBf16, kM, kEven>;
  constexpr int kImages = 16 * kM;
  const int lane = threadIdx.x & 31, warp = ptx::uniform(threadIdx.x >> 5), g = lane >> 2, t = lane & 3;
  unsigned char* const canvases = smem + a.buffers * a.buffer_bytes;

  const SmallShare share = share_of(a, warp);
  const int channel = share.channel, tile0 = share.tile0, own = share.own;
  Warp s;
  s.smem = smem;
  s.skipped = kEven ? 0 : (channel * a.x.pixels) & 1;
  find_columns(s, a, share, a.buffers * a.buffer_bytes + channel * a.canvas_bytes);

  // a unit is a block's channels of one group of images; a block has a few, one after the other, images first
  const int first = static_cast<int>(static_cast<int64_t>(blockIdx.x) * a.units / gridDim.x);
  const int end = static_cast<int>((static_cast<int64_t>(blockIdx.x) + 1) * a.units / gridDim.x);
  int drawn = -1;  // whose canvases are there
#pragma unroll 1
  for (int unit = first - 1; unit < end; ++unit) {
    if (unit >= first) __syncthreads();  // the buffer of the next unit is free, and so are the canvases
    if (const int next = unit + 1; next < end) {
      const int block = next / a.image_tiles, channel0 = block * a.channels;
      load_runs(smem + ((next - first) & (a.buffers - 1)) * a.buffer_bytes, a.x, a.n, a.c, channel0,
                min(a.channels, a.c - channel0), (next - block * a.image_tiles) * kImages, kImages);
    }
    ptx::cp_async_commit();
    if (unit < first) continue;
    const auto buffer = [&] { return smem + ((unit - first) & (a.buffers - 1)) * a.buffer_bytes; };
    const auto works = [&](int block) { return block * a.channels + channel < a.c; };
    {
      const int block = unit / a.image_tiles;
      if (drawn != block)
        draw_canvases<kEven>(canvases, a, block * a.channels, min(a.channels, a.c - block * a.channels)), drawn = block;
      s.rows = buffer() + g * 4 * a.x.pitch + (channel * a.x.pixels / 2 + t) * 4;
      ptx::cp_async_wait<1>();
      __syncthreads();
      if (works(block)) s.sum(a, own);
      __syncthreads();  // every warp has read its inputs: results take their place
    }
    int thread = threadIdx.x, now = unit;  // found again, so that the products need not keep what follows in registers
    ptx::opaque(thread), ptx::opaque(now);
    const int block = now / a.image_tiles, channel0 = block * a.channels;
    if (works(block)) {
      const float bias = a.bias ? ptx::to_float<kBf16>(ptx::load_global(a.bias + channel0 + channel)) : 0.f;
      put_results<kBf16, kM, kEven>(s, a, buffer, channel, a.y.pixels, tile0, own, thread, bias);
    }
    __syncthreads();
    store_runs(buffer(), a.y, a.n, a.c, channel0, min(a.channels, a.c - channel0), (now - block * a.image_tiles) * kImages,
               kImages);
  }
  ptx::cp_async_wait<0>();
}

// channels_last: a block loads and stores as many channels as fill a sector and computes them in rounds, a canvas each.
// A block has one unit; its loads go through registers, where pixels and channels change places.
template <bool kBf16, int kM, bool kEven>
__device__ __forceinline__ void small_fwd_last(const SmallFwdArgs& a, unsigned char* smem) {
  constexpr int kImages = 16 * kM;
  const int lane = threadIdx.x & 31, g = lane >> 2, t = lane & 3;
  const SmallShare share = share_of(a, ptx::uniform(threadIdx.x >> 5));
  const int block = static_cast<int>(blockIdx.x) / a.image_tiles, channel0 = block * a.channels;
  const int image0 = (static_cast<int>(blockIdx.x) - block * a.image_tiles) * kImages;
  const int channels = min(a.channels, a.c - channel0);
  move_pixels<false>(smem, a.x, a.n, a.c, channel0, channels, image0, kImages);
  draw_canvases<kEven>(smem + a.buffer_bytes, a, channel0, channels);
  SmallWarp<kBf16, kM, kEven> s;
  s.smem = smem, s.skipped = 0;
  find_columns(s, a, share, a.buffer_bytes + share.channel * a.canvas_bytes);
  __syncthreads();
#pragma unroll 1
  for (int first = 0; first < channels; first += a.round_channels) {
    const int channel = first + share.channel;
    s.rows = smem + g * 4 * a.x.pitch + (channel * a.x.plane / 2 + t) * 4;
    if (channel < channels) s.sum(a, share.own);
    __syncthreads();  // the warps of a channel have read its inputs: results take their place
    if (channel < channels) {
      const float bias = a.bias ? ptx::to_float<kBf16>(ptx::load_global(a.bias + channel0 + channel)) : 0.f;
      put_results<kBf16, kM, kEven>(s, a, [&] { return smem; }, channel, a.y.plane, share.tile0, share.own, lane, bias);
    }
    s.smem += a.round_channels * a.canvas_bytes;
  }
  __syncthreads();
  move_pixels<true>(smem, a.y, a.n, a.c, channel0, channels, image0, kImages);
}

template <bool kBf16, int kM, bool kEven, bool kLast, int kWarps>
__global__ void __launch_bounds__(kWarps * 32, 1) small_fwd_kernel(const __grid_constant__ SmallFwdArgs a) {
  DYN_SMEM(smem);
  if constexpr (kLast) small_fwd_last<kBf16, kM, kEven>(a, smem);
  else small_fwd_runs<kBf16, kM, kEven>(a, smem);
}

}  // namespace replknet_ext::cuda
