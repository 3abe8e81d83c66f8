// Stencil: depthwise convolution (stride 1) with small filters on the FMA pipe, fp32 sums. Made for copy speed: every
// input row comes from global memory straight into registers, once per thread.
//
// A thread owns a strip of an output plane: 8 columns (NCHW) or 7 columns of as many channels as fill 4 bytes
// (channels_last), and slides down its rows. An input row meets the sums of as many output rows as the filter has; they
// stay in registers: sums[j] is of the output row that sees the input row through filter row j. With the next input row
// that output row is seen through filter row j + 1, and the first multiply-add of sums[j + 1] reads sums[j]: passing
// sums on costs no instruction. The row after is loaded meanwhile. Neighbours' columns come again from the L1 cache.
//
// A block's threads are [item][channel]: channels along the lanes, a power of two (channels_last: whole sectors of 32
// bytes), and items, which are [row tile][image][strip], so that all threads of a block count rows alike: rows above
// and below a tile meet only the sums that need them, rows above the image none.
//
// bwd_weight: a thread has the sums of all taps, or of those of some filter rows (a part of the filter, a block each), and
// goes over its items likewise. The last rows of its output gradient
// wait in a ring in shared memory that no other thread touches. At the end sums are added by shuffles, then by warps,
// then (weight_sum.cuh) by blocks, always in the same order: the same bits on every run, no atomics.
//
// fwd: an Inf or NaN of the input stays in its receptive field, but for a filter smaller than the kernel's square of
// taps, whose zeros multiply. Padding is multiplied, as in im2col.
#pragma once
#include "../activation.cuh"
#include "tile.cuh"
#include "../weight_sum.cuh"

namespace replknet_ext::cuda {

struct StencilItem {
  bool exists;
  int image, y, x;  // of the first output
};

template <int kColumns>
__device__ __forceinline__ StencilItem stencil_item(const StencilArgs& a, int item) {
  const int strip = item % a.strips, rest = item / a.strips;
  return {item < a.items, rest % a.n, rest / a.n * a.tile_rows, strip * kColumns};
}

// Where a row of a plane starts: y may be outside, then nobody reads there.
template <class T>
__device__ __forceinline__ const T* stencil_row(const StencilTensor& t, int image, int channel, int y, int x) {
  return static_cast<const T*>(t.p) + image * t.image + channel * t.channel + y * t.row + x * t.column;
}

template <class T, int kTaps, bool kLast, int kBlocks>
__global__ void __launch_bounds__(kStencilThreads, kBlocks) stencil_kernel(const __grid_constant__ StencilArgs a) {
  using Row = StencilRow<T, kTaps, kLast>;
  constexpr int kColumns = Row::kColumns, kChannels = Row::kChannels, kIn = Row::kIn;
  constexpr int kFilterRow = Row::kFilterRow, kPitch = Row::kFilterPitch;
  DYN_SMEM(smem);
  float* const filter = reinterpret_cast<float*>(smem);  // [lane along channels][filter row][tap][channel]
  const int lanes = 1 << a.channels_log2, own = threadIdx.x & (lanes - 1);
  const int group = blockIdx.x % a.channel_groups, channel0 = group * lanes * kChannels;
  const int channel = channel0 + own * kChannels;
  const bool second = channel + 1 < a.c;

  for (int e = threadIdx.x; e < lanes * kTaps * kFilterRow; e += kStencilThreads) {
    const int at = e % kFilterRow, row = e / kFilterRow % kTaps, lane = e / kFilterRow / kTaps;
    const int tap = at / kChannels - a.left, c = channel0 + lane * kChannels + at % kChannels;
    float v = 0;
    if (row >= a.top && tap >= 0 && tap < a.kw && c < a.c) {
      const int own_tap = (row - a.top) * a.kw + tap, i = a.flip ? a.kh * a.kw - 1 - own_tap : own_tap;
      v = load_stored<T>(a.filter, static_cast<int64_t>(c) * a.kh * a.kw + i, a.dtype);
    }
    filter[lane * kPitch + row * kFilterRow + at] = v;
  }
  __syncthreads();

  const int number = static_cast<int>(blockIdx.x / a.channel_groups) * (kStencilThreads >> a.channels_log2);
  const StencilItem item = stencil_item<kColumns>(a, number + (static_cast<int>(threadIdx.x) >> a.channels_log2));
  const bool exists = item.exists && channel < a.c;
  const int first = item.x - a.pad_left - Row::kSkip, steps = a.tile_rows + kTaps - 1;
  const uint32_t columns = exists ? Row::inside(first, a.in.w) : 0;
  const auto is_inside = [&](int y) { return static_cast<unsigned>(y) < static_cast<unsigned>(a.in.h); };
  int y = item.y - a.pad_top;
  const T* in = stencil_row<T>(a.in, item.image, channel, y, first);
  T* out = const_cast<T*>(stencil_row<T>(a.out, item.image, channel, item.y, item.x));
  float bias[kChannels];
#pragma unroll
  for (int v = 0; v < kChannels; ++v)
    bias[v] = a.bias && channel + v < a.c ? load_stored<T>(a.bias, channel + v, a.dtype) : 0.f;

  float sums[kTaps][kColumns][kChannels];  // they start as the bias
#pragma unroll
  for (int i = 0; i < kTaps * kColumns * kChannels; ++i) (&sums[0][0][0])[i] = bias[i % kChannels];
  bool met = false;  // a row inside the image: until then there is nothing to add
  Row row;
  row.load(in, a.in, is_inside(y) ? columns : 0, second);
#pragma unroll 1
  for (int step = a.top; step < steps; ++step) {
    const int met_rows = min(a.tile_rows, step + 1 - a.top);  // none through the rows above a smaller filter
    float x[kIn][kChannels];
    row.kept_floats(x, a.dtype);
    met = met || __ballot_sync(~0u, exists && is_inside(y)) != 0;
    ++y, in += a.in.row;
    if (step + 1 < steps) row.load(in, a.in, is_inside(y) ? columns : 0, second);
    if (met) {
#pragma unroll
      for (int j = kTaps - 1; j >= 0; --j) {
        if (static_cast<unsigned>(step - j) >= static_cast<unsigned>(met_rows)) continue;  // not a row of the tile
        float w[kFilterRow];
#pragma unroll
        for (int i = 0; i < kFilterRow; i += 4) {
          const ptx::Quad<float> quad = ptx::load_quad(filter + own * kPitch + j * kFilterRow + i);
#pragma unroll
          for (int k = 0; k < 4; ++k) w[i + k] = quad.v[k];
        }
#pragma unroll
        for (int k = 0; k < kTaps; ++k)
#pragma unroll
          for (int i = 0; i < kColumns; ++i)
#pragma unroll
            for (int v = 0; v < kChannels; ++v) {
              const float before = k > 0 ? sums[j][i][v] : j > 0 ? sums[j - 1][i][v] : bias[v];
              sums[j][i][v] = ptx::fused(x[i + k][v], w[k * kChannels + v], before);
            }
      }
    }
    if (step < kTaps - 1) continue;
    if (exists && item.y + step - (kTaps - 1) < a.out.h) {
      float done[kColumns][kChannels];
#pragma unroll
      for (int i = 0; i < kColumns; ++i)
#pragma unroll
        for (int v = 0; v < kChannels; ++v) done[i][v] = activate(sums[kTaps - 1][i][v], a.activation);
      if (sizeof(T) == 4 || a.dtype == 2) store_stencil_row<T, kLast, true>(out, done, a.out, a.out.w - item.x, second);
      else store_stencil_row<T, kLast, false>(out, done, a.out, a.out.w - item.x, second);
    }
    out += a.out.row;
  }
}

template <class T, int kTaps, int kRows, bool kLast, int kBlocks>
__global__ void __launch_bounds__(kStencilThreads, kBlocks)
    stencil_weight_kernel(const __grid_constant__ StencilArgs a) {
  using Row = StencilRow<T, kTaps, kLast>;
  using GradRow = StencilRow<T, 1, kLast>;
  constexpr int kColumns = Row::kColumns, kChannels = Row::kChannels, kIn = Row::kIn;
  using Shared = StencilWeightShared<kRows, kTaps, kChannels>;
  constexpr int kRing = Shared::kRing, kPieces = Row::kPieces, kPitch = Shared::kPitch;
  DYN_SMEM(smem);
  uint4* const ring = reinterpret_cast<uint4*>(smem) + threadIdx.x;  // [row][piece][thread]
  const int lanes = 1 << a.channels_log2, own = threadIdx.x & (lanes - 1);
  const int group = blockIdx.x % a.channel_groups, channel0 = group * lanes * kChannels;
  const int channel = channel0 + own * kChannels;
  const bool second = channel + 1 < a.c;
  const int place = static_cast<int>(blockIdx.x / a.channel_groups);
  const int part = kRows < kTaps ? place % a.parts : 0, split = kRows < kTaps ? place / a.parts : place;
  const int filter_row = part * a.part_rows, rows = min(a.part_rows, a.kh - filter_row);  // of this block
  const int steps = a.tile_rows + rows - 1;

  float sums[kRows][kTaps][kChannels] = {}, grad_sum[kChannels] = {};
#pragma unroll 1
  for (int turn = 0; turn < a.turns; ++turn) {
    const int number = (split * a.turns + turn) * (kStencilThreads >> a.channels_log2);
    const StencilItem item = stencil_item<kColumns>(a, number + (static_cast<int>(threadIdx.x) >> a.channels_log2));
    const bool exists = item.exists && channel < a.c;
    const int first = item.x - a.pad_left - Row::kSkip;
    const uint32_t columns = exists ? Row::inside(first, a.in.w) : 0;
    const uint32_t grad_columns = exists ? GradRow::inside(item.x, a.out.w) : 0;
    const auto is_inside = [&](int y) { return static_cast<unsigned>(y) < static_cast<unsigned>(a.in.h); };
    const auto has_grad = [&](int step) { return step < a.tile_rows && item.y + step < a.out.h; };
    int y = item.y - a.pad_top + filter_row;
    const T* in = stencil_row<T>(a.in, item.image, channel, y, first);
    const T* grad = stencil_row<T>(a.out, item.image, channel, item.y, item.x);
    Row row;
    GradRow grad_row;
    row.load(in, a.in, is_inside(y) ? columns : 0, second);
    grad_row.load(grad, a.out, has_grad(0) ? grad_columns : 0, second);
#pragma unroll 1
    for (int step = 0, turned = 0; step < steps; ++step, turned = turned + 1 < kRing ? turned + 1 : 0) {
      // where the ring has the gradient's row of so many steps ago
      const auto place_of = [&](int ago) {
        if constexpr ((kRing & (kRing - 1)) == 0) return (step - ago) % kRing;
        return turned < ago ? turned - ago + kRing : turned - ago;
      };
      float x[kIn][kChannels];
      row.kept_floats(x, a.dtype);
#pragma unroll
      for (int i = 0; i < kPieces; ++i) {
        uint32_t w[4];
#pragma unroll
        for (int k = 0; k < 4; ++k)
          w[k] = 4 * i + k < GradRow::kWords ? grad_row.words[min(4 * i + k, GradRow::kWords - 1)] : 0;
        ptx::store_shared(ring + (place_of(0) * kPieces + i) * kStencilThreads, {w[0], w[1], w[2], w[3]});
      }
      const int lost = max(0, step - rows + 1);  // rows of the tile that are above all of the filter's
      const bool meets = __ballot_sync(~0u, exists && is_inside(y)) != 0;
      ++y, in += a.in.row, grad += a.out.row;
      if (step + 1 < steps) {
        row.load(in, a.in, is_inside(y) ? columns : 0, second);
        grad_row.load(grad, a.out, has_grad(step + 1) ? grad_columns : 0, second);
      }
#pragma unroll
      for (int j = 0; j < kRows; ++j) {
        // rows above and below the tile; the bias' gradient needs every row of grad once
        if (static_cast<unsigned>(step - lost - j) >= static_cast<unsigned>(a.tile_rows - lost) || (j > 0 && !meets))
          continue;
        GradRow from;
#pragma unroll
        for (int i = 0; i < kPieces; ++i) {
          const uint4 piece = ptx::load_shared(ring + (place_of(j) * kPieces + i) * kStencilThreads);
          const uint32_t w[4] = {piece.x, piece.y, piece.z, piece.w};
#pragma unroll
          for (int k = 0; k < 4; ++k)
            if (4 * i + k < GradRow::kWords) from.words[min(4 * i + k, GradRow::kWords - 1)] = w[k];
        }
        float g[kColumns][kChannels];
        from.floats(g, a.dtype);
#pragma unroll
        for (int i = 0; i < kColumns; ++i)
#pragma unroll
          for (int v = 0; v < kChannels; ++v) {
            if (j == 0) grad_sum[v] += g[i][v];
#pragma unroll
            for (int k = 0; k < kTaps; ++k) sums[j][k][v] = ptx::fused(g[i][v], x[i + k][v], sums[j][k][v]);
          }
      }
    }
  }

  // lanes of a channel, then warps
  for (int bit = lanes; bit < 32; bit *= 2) {
#pragma unroll
    for (int i = 0; i < kRows * kTaps * kChannels; ++i)
      (&sums[0][0][0])[i] += ptx::shuffle_xor((&sums[0][0][0])[i], bit);
#pragma unroll
    for (int v = 0; v < kChannels; ++v) grad_sum[v] += ptx::shuffle_xor(grad_sum[v], bit);
  }
  float* const all = reinterpret_cast<float*>(smem);  // [warp][lane along channels][kPitch]
  const int warp = static_cast<int>(threadIdx.x) >> 5;
  __syncthreads();  // every thread has finished with its ring
  if ((threadIdx.x & 31) < static_cast<unsigned>(lanes)) {
    float* const to = all + (warp * lanes + own) * kPitch;
#pragma unroll
    for (int i = 0; i < kRows * kTaps * kChannels; ++i) to[i] = (&sums[0][0][0])[i];
#pragma unroll
    for (int v = 0; v < kChannels; ++v) to[kRows * kTaps * kChannels + v] = grad_sum[v];
  }
  __syncthreads();
  const int taps = rows * a.kw, all_taps = a.kh * a.kw;
  for (int e = threadIdx.x; e < lanes * kChannels * (taps + 1); e += kStencilThreads) {
    const int tap = e % (taps + 1), c = e / (taps + 1);
    if (channel0 + c >= a.c) break;
    if (tap == taps && part > 0) continue;  // the bias' gradient is the first part's
    const int at = tap == taps ? kRows * kTaps : tap / a.kw * kTaps + tap % a.kw + a.left;
    const int to = tap == taps ? all_taps : filter_row * a.kw + tap;
    float v = 0;
    for (int w = 0; w < kStencilThreads / 32; ++w)
      v += all[(w * lanes + c / kChannels) * kPitch + at * kChannels + c % kChannels];
    if (a.partial) a.partial[(static_cast<int64_t>(split) * a.c + channel0 + c) * (all_taps + 1) + to] = v;
    else if (tap < taps) store_result(a.grad, static_cast<int64_t>(channel0 + c) * all_taps + to, v, a.dtype);
    else if (a.grad_bias) store_result(a.grad_bias, channel0 + c, v, a.dtype);
  }
}

}  // namespace replknet_ext::cuda
