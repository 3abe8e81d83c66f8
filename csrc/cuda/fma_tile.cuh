// A thread's tile of the FMA kernels, and the loads and stores around it.
#pragma once
#include "fma_args.h"
#include "ptx.cuh"

namespace replknet_ext::cuda {

// kRows rows x 4 columns of one plane's output. Input and filter come from shared memory in quads of 4 columns: a chunk of
// 4 taps meets a window of 7 inputs. x points to the window in the input row that meets filter row k and output row 0,
// f to the chunk in filter row k; output row i then meets filter row k - i.
template <class T, int kRows>
struct FmaTile {
  T acc[kRows][4];

  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int i = 0; i < 4 * kRows; ++i) acc[i / 4][i % 4] = T(0);
  }

  // Taps [kLow, kHigh) of a chunk into one output row.
  template <int kLow, int kHigh>
  __device__ __forceinline__ void add(int i, const ptx::Quad<T>& a, const ptx::Quad<T>& b, const ptx::Quad<T>& w) {
#pragma unroll
    for (int j = kLow; j < kHigh; ++j)
#pragma unroll
      for (int c = 0; c < 4; ++c) acc[i][c] = ptx::fused(c + j < 4 ? a.v[c + j] : b.v[c + j - 4], w.v[j], acc[i][c]);
  }

  // Steps k ... k_end of which any output row may be outside the filter: rows it does not meet cost a branch.
  template <int kLow, int kHigh>
  __device__ __forceinline__ void edge(const T* x, const T* f, int k, int k_end, int f_rows, int rows, int x_pitch,
                                       int f_pitch) {
#pragma unroll 1
    for (; k < k_end; ++k, x += x_pitch, f += f_pitch) {
      const int low = max(0, k - f_rows + 1), high = min(rows - 1, k);
      const ptx::Quad<T> a = ptx::load_quad(x);
      ptx::Quad<T> b{};
      if constexpr (kHigh > 1) b = ptx::load_quad(x + 4);
#pragma unroll
      for (int i = 0; i < kRows; ++i)
        if (i >= low && i <= high) add<kLow, kHigh>(i, a, b, ptx::load_quad(f - i * f_pitch));
    }
  }

  // trips * kRows steps that meet every output row. A filter row is loaded once and passed between output rows in
  // registers: at step u of a trip, row i uses w[(u - i) mod kRows].
  __device__ __forceinline__ void steady(const T* x, const T* f, int trips, int x_pitch, int f_pitch) {
    ptx::Quad<T> w[kRows];
#pragma unroll
    for (int i = 1; i < kRows; ++i) w[kRows - i] = ptx::load_quad(f - i * f_pitch);
#pragma unroll 1
    for (; trips > 0; --trips) {
#pragma unroll
      for (int u = 0; u < kRows; ++u, x += x_pitch, f += f_pitch) {
        w[u] = ptx::load_quad(f);
        const ptx::Quad<T> a = ptx::load_quad(x), b = ptx::load_quad(x + 4);
#pragma unroll
        for (int i = 0; i < kRows; ++i) add<0, 4>(i, a, b, w[(u - i + kRows) % kRows]);
      }
    }
  }

  // Steps k ... k_end of a whole chunk.
  __device__ __forceinline__ void whole(const T* x, const T* f, int k, int k_end, int f_rows, int rows, int x_pitch,
                                        int f_pitch) {
    const int first = max(k, kRows - 1), trips = max(0, min(k_end, f_rows) - first) / kRows;
    const int turn = trips > 0 ? first : k_end;
#pragma unroll 1
    for (int stop = turn;; stop = k_end) {
      edge<0, 4>(x, f, k, stop, f_rows, rows, x_pitch, f_pitch);
      x += (stop - k) * x_pitch, f += (stop - k) * f_pitch, k = stop;
      if (stop == k_end) break;
      steady(x, f, trips, x_pitch, f_pitch);
      x += trips * kRows * x_pitch, f += trips * kRows * f_pitch, k += trips * kRows;
    }
  }

  __device__ __forceinline__ void chunk(int low, int high, const T* x, const T* f, int k, int k_end, int f_rows,
                                        int rows, int x_pitch, int f_pitch) {
    if (low == 0 && high == 4) whole(x, f, k, k_end, f_rows, rows, x_pitch, f_pitch);
    else if (low == 1) edge<1, 4>(x, f, k, k_end, f_rows, rows, x_pitch, f_pitch);
    else if (high == 3) edge<0, 3>(x, f, k, k_end, f_rows, rows, x_pitch, f_pitch);
    else if (high == 2) edge<0, 2>(x, f, k, k_end, f_rows, rows, x_pitch, f_pitch);
    else edge<0, 1>(x, f, k, k_end, f_rows, rows, x_pitch, f_pitch);
  }
};

// A part of some planes: rows [y, y + rows) x columns [x, x + pitch), then tail elements, zeros outside the plane.
struct FmaPart {
  int y, x, rows, pitch, tail, plane;  // plane: elements of shared memory between planes
  int h, w;
};

// Planes are [image][channel]; a warp's lanes go along channels (channel_lanes of them), columns (1 << lanes_log2), rows.
template <class T>
__device__ __forceinline__ void load_part(T* to, const T* from, const FmaStrides& s, const FmaPart& p, int image,
                                          int images, int image_end, int channel, int channels, int channel_end,
                                          int channel_lanes, int lanes_log2) {
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, warps = blockDim.x >> 5;
  const int own_channel = lane & (channel_lanes - 1), column_lanes = 1 << lanes_log2;
  const int place = lane / channel_lanes, column = place & (column_lanes - 1), row_lanes = 32 / channel_lanes / column_lanes;
  const int rows = p.rows + (p.tail > 0), planes = images * (channels / channel_lanes);
  int outer = 0, row = warp * row_lanes + (place >> lanes_log2);  // outer: [image][channel / channel_lanes]
  for (;; row += warps * row_lanes) {
    while (row >= rows && outer < planes) row -= rows, ++outer;
    if (outer >= planes) break;
    const int n = outer / (channels / channel_lanes);
    const int c = (outer - n * (channels / channel_lanes)) * channel_lanes + own_channel;
    const bool inside = row < p.rows && static_cast<unsigned>(p.y + row) < static_cast<unsigned>(p.h) &&
                        image + n < image_end && channel + c < channel_end;
    const T* source = from + (image + n) * s.n + (channel + c) * s.c + (p.y + row) * s.y;
    T* target = to + (n * channels + c) * p.plane + row * p.pitch;
    const int width = row < p.rows ? p.pitch : p.tail;
    for (int x = column; x < width; x += column_lanes) {
      const int ix = p.x + x;
      if (inside && static_cast<unsigned>(ix) < static_cast<unsigned>(p.w)) ptx::cp_async<sizeof(T)>(target + x, source + ix * s.x);
      else target[x] = T(0);
    }
  }
}

template <class T>
__device__ __forceinline__ T fma_activate(T v, int activation) {
  if (activation == 1) return v > T(0) || v != v ? v : T(0);  // relu keeps NaN, as torch does
  if (activation == 2) {                                      // gelu by erf
    if constexpr (sizeof(T) == 8) return 0.5 * v * (1. + erf(v * 0.70710678118654752440));
    else return 0.5f * v * (1.f + erff(v * 0.70710678118654752f));
  }
  return v;
}

}  // namespace replknet_ext::cuda
