// FMA: depthwise convolution (stride 1) on the FMA pipe in float32 or float64, exact to the rounding of its sums: a tap
// meets only the inputs that it sees, so Inf and NaN stay in their receptive field.
//
// One routine serves all passes, since the filter's gradient is a correlation of the input with the output's gradient:
// "filter" is the layer's filter in fwd (flipped for bwd_input) and the gradient's plane in bwd_weight, whose "output"
// are the taps. Memory formats differ in strides only: a block holds planes (image, channel) in shared memory.
//
// A thread computes kRows x 4 outputs of one plane. A warp's 32 slots go over [row group of a merged few][column group]
// [plane], planes first: shared memory is read without bank conflicts, filters are broadcast, and as the slots of a
// warp are neighbours, loop bounds clip most taps outside the image: rows exactly (one row group a warp), columns by
// chunks of 4 taps. A filter, or an output gradient, that does not fit goes through in parts; every warp then has one
// tile, whose sums stay in registers over parts and, in bwd_weight, over images. Where bwd_weight has few tiles, slices
// of the gradient's rows go to different warps. No atomics: the same bits on every run.
#pragma once
#include "../activation.cuh"
#include "tile.cuh"
#include "variants.h"

namespace replknet_ext::cuda {

// Which windows meet the image: that of column group g and chunk t is number g + t and starts at input column
// 4 (g + t) + fma_origin.
__host__ __device__ constexpr int fma_origin(int shift, int pad_left) { return -shift - pad_left; }
__host__ __device__ constexpr int fma_floor4(int v) { return v >= 0 ? v / 4 : -((3 - v) / 4); }
__host__ __device__ constexpr int fma_first_window(int origin) { return fma_floor4(-6 - origin + 3); }
__host__ __device__ constexpr int fma_last_window(int origin, int width) { return fma_floor4(width - 1 - origin); }

// Tile row groups from the middle outwards: the middle meets most input rows, and long items should start first.
__host__ __device__ constexpr int fma_row_order(int i, int groups) {
  return i & 1 ? groups / 2 - (i + 1) / 2 : groups / 2 + i / 2;
}

// One warp's work: 32 slots, and for bwd_weight a slice of the filter's rows.
struct FmaItem {
  int group_low, group_high, column_low, column_high;  // row and column groups of the warp, in the tile
  int plane, group, column;                            // of the lane
  bool exists;
};

template <class T, int kRows, bool kWeight, int kWarps, int kBlocks>
__global__ void __launch_bounds__(kWarps * 32, kBlocks) fma_kernel(const __grid_constant__ FmaArgs a) {
  DYN_SMEM(smem);
  const int lane = threadIdx.x & 31, warp = ptx::uniform(threadIdx.x >> 5), warps = blockDim.x >> 5;
  const int channels = 1 << a.channels_log2, images = 1 << a.images_log2;
  const int planes_log2 = a.channels_log2 + a.images_log2, planes = 1 << planes_log2;
  T* const input = reinterpret_cast<T*>(smem);
  T* const filter = input + planes * a.in_plane;

  const int tile = blockIdx.x % a.tiles, channel0 = blockIdx.x / a.tiles * channels;
  const int group_y0 = tile / a.column_tiles * a.tile_rows, group_x0 = tile % a.column_tiles * a.tile_columns;
  const int groups_y = min(a.tile_rows, a.row_groups - group_y0);
  const int groups_x = min(a.tile_columns, a.column_groups - group_x0);
  const int merged = (groups_y + a.merge - 1) / a.merge;
  const int item_warps = ((groups_x * a.merge << planes_log2) + 31) / 32, items = merged * item_warps;

  const int first_image = kWeight ? static_cast<int>(blockIdx.y) * a.images_per_split
                                  : a.image0 + static_cast<int>(blockIdx.y) * images;
  const int image_end = min(a.n, first_image + (kWeight ? a.images_per_split : images));
  const int parts = a.parts_down * a.parts_along;
  const int rounds = kWeight ? parts * ((image_end - first_image + images - 1) >> a.images_log2) : parts;

  const int origin = fma_origin(a.shift, a.pad_left);
  const int low_window = fma_first_window(origin), high_window = fma_last_window(origin, a.w);
  const int spread = (a.merge - 1) * kRows;  // input rows outside the image that a warp of several row groups may read

  const auto locate = [&](int item) {
    FmaItem w;
    const int sub = item % item_warps, group = fma_row_order(item / item_warps, merged) * a.merge;
    const int first = sub * 32 >> planes_log2, last = (sub * 32 + 31) >> planes_log2;
    w.group_low = group + first / groups_x, w.group_high = min(groups_y - 1, group + min(a.merge - 1, last / groups_x));
    const bool one_row = first / groups_x == last / groups_x;
    w.column_low = one_row ? first % groups_x : 0, w.column_high = one_row ? last % groups_x : groups_x - 1;
    const int slot = sub * 32 + lane, place = slot >> planes_log2;
    w.plane = slot & (planes - 1), w.group = group + place / groups_x, w.column = place % groups_x;
    w.exists = place / groups_x < a.merge && w.group < groups_y;
    return w;
  };
  const auto store = [&](const FmaTile<T, kRows>& sums, const FmaItem& w, int n, bool exists) {
    const int c = channel0 + (w.plane & (channels - 1));
    const int y = (group_y0 + w.group) * kRows, x = (group_x0 + w.column) * 4;
    if (!exists || !w.exists || c >= a.c) return;
    T* out = static_cast<T*>(a.out) + n * a.os.n + c * a.os.c + y * a.os.y + x * a.os.x;
#pragma unroll
    for (int i = 0; i < kRows; ++i)
      if (y + i < a.oh) ptx::store_quad(out + i * a.os.y, sums.acc[i], a.os.x, a.ow - x, a.out_vec);
  };

  FmaTile<T, kRows> sums;
  T grad_sum = 0;
  if constexpr (kWeight) sums.clear();
#pragma unroll 1
  for (int round = 0; round < rounds; ++round) {
    const int image = first_image + (round / parts << a.images_log2), part = round % parts;
    const int k0 = part / a.parts_along * a.part_rows, part_rows = min(a.part_rows, a.fh - k0);
    const int t0 = part % a.parts_along * a.part_chunks, t_end = min(a.chunks, t0 + a.part_chunks);
    const int y_low = max(-spread, group_y0 * kRows + k0 - a.pad_top);
    const int y_end = min(a.h + spread, (group_y0 + groups_y) * kRows + k0 + part_rows - 1 - a.pad_top);
    const int window0 = max(low_window, group_x0 + t0);

    if (round > 0) __syncthreads();  // every warp has finished with the round before
    load_part(input, static_cast<const T*>(a.x), a.xs,
              {y_low, 4 * window0 + origin, max(0, y_end - y_low), a.in_pitch, a.in_tail, a.in_plane, a.h, a.w}, image,
              images, image_end, channel0, channels, a.c, a.channel_lanes, a.lanes_log2);
    const FmaPart filter_part{k0, 4 * t0 - a.shift, part_rows, a.f_pitch, 0, a.f_plane, a.fh, a.fw};
    load_part(filter, static_cast<const T*>(a.f), a.fs, filter_part, kWeight ? image : 0, kWeight ? images : 1,
              kWeight ? image_end : 1, channel0, channels, a.c, a.f_channel_lanes, a.f_lanes_log2);
    ptx::cp_async_commit();
    ptx::cp_async_wait<0>();
    __syncthreads();

    if constexpr (kWeight)
      if (a.grad_bias && tile == 0)
        for (int e = threadIdx.x >> planes_log2; e < part_rows * a.f_pitch; e += blockDim.x >> planes_log2)
          grad_sum += filter[(threadIdx.x & (planes - 1)) * a.f_plane + e];

    for (int item = warp; item < items * a.slices; item += warps) {
      const FmaItem w = locate(item % items);
      const int skipped = item / items * a.slice_rows, f_rows = min(a.slice_rows, part_rows - skipped);
      const int above = a.pad_top - k0 - skipped;  // output row y and row k of the slice meet input row y + k - above
      const int y0 = (group_y0 + w.group_low) * kRows, y_last = (group_y0 + w.group_high) * kRows;
      const int rows = w.group_low == w.group_high ? min(kRows, a.oh - y0) : kRows;
      const int k_low = max(0, above - y_last), k_end = min(f_rows + rows - 1, a.h + above - y0);
      const int t_low = max(t0, low_window - (group_x0 + w.column_high));
      const int t_high = min(t_end - 1, high_window - (group_x0 + w.column_low));

      if (!kWeight && round == 0) sums.clear();
      const int own_y = (group_y0 + w.group) * kRows - above + k_low - y_low;
      const T* x = input + w.plane * a.in_plane + own_y * a.in_pitch;
      const T* f = filter + (kWeight ? w.plane : w.plane & (channels - 1)) * a.f_plane + (skipped + k_low) * a.f_pitch;
#pragma unroll 1
      for (int t = t_low; f_rows > 0 && k_low < k_end && t <= t_high; ++t) {
        const int window = group_x0 + w.column + t, low = t == 0 ? a.shift : 0;
        const int high = min(4, a.fw + a.shift - 4 * t);
        if (w.exists && window >= low_window && window <= high_window)
          sums.chunk(low, high, {x + (window - window0) * 4, f + (t - t0) * 4, k_low, a.in_pitch, a.f_pitch}, k_end,
                     f_rows, rows);
      }
      if constexpr (!kWeight)
        if (round + 1 == rounds) {
          const int n = image + (w.plane >> a.channels_log2), c = channel0 + (w.plane & (channels - 1));
          const T bias = a.bias && c < a.c ? static_cast<const T*>(a.bias)[c] : T(0);
#pragma unroll
          for (int i = 0; i < 4 * kRows; ++i)
            sums.acc[i / 4][i % 4] = activate(sums.acc[i / 4][i % 4] + bias, a.activation);
          store(sums, w, n, n < image_end);
        }
    }
  }

  if constexpr (kWeight) {
    T* const scratch = input;  // slices are summed in their order, then images by shuffles
    __syncthreads();
    if (warp >= items && warp < items * a.slices)
#pragma unroll
      for (int i = 0; i < 4 * kRows; ++i)
        scratch[((warp - items) * 4 * kRows + i) * 32 + lane] = sums.acc[i / 4][i % 4];
    __syncthreads();
    if (warp < items) {
      for (int slice = 1; slice < a.slices; ++slice)
#pragma unroll
        for (int i = 0; i < 4 * kRows; ++i)
          sums.acc[i / 4][i % 4] += scratch[(((slice - 1) * items + warp) * 4 * kRows + i) * 32 + lane];
      for (int bit = channels; bit < planes; bit *= 2)
#pragma unroll
        for (int i = 0; i < 4 * kRows; ++i) sums.acc[i / 4][i % 4] += ptx::shuffle_xor(sums.acc[i / 4][i % 4], bit);
      const FmaItem w = locate(warp);
      store(sums, w, blockIdx.y, w.plane < channels);
    }
    if (a.grad_bias && tile == 0) {
      __syncthreads();
      input[threadIdx.x] = grad_sum;
      __syncthreads();
      if (static_cast<int>(threadIdx.x) < channels && channel0 + static_cast<int>(threadIdx.x) < a.c) {
        T sum = 0;
        for (int i = threadIdx.x; i < static_cast<int>(blockDim.x); i += channels) sum += input[i];
        static_cast<T*>(a.grad_bias)[static_cast<int64_t>(blockIdx.y) * a.c + channel0 + threadIdx.x] = sum;
      }
    }
  }
}

}  // namespace replknet_ext::cuda
