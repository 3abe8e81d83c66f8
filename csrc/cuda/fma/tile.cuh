// A thread's tile of the FMA kernels, and the loads and stores around it.
#pragma once
#include "args.h"
#include "../ptx.cuh"

namespace replknet_ext::cuda {

// Where a tile is in its sum. Step k meets output row 0 with filter row k: x points to the window of inputs, f to the
// chunk of taps there; output row i then meets filter row k - i.
template <class T>
struct FmaPlace {
  const T *x, *f;
  int k, x_pitch, f_pitch;
  __device__ __forceinline__ void step(int n) { k += n, x += n * x_pitch, f += n * f_pitch; }
};

// kRows rows x 4 columns of one plane's output. Input and filter come from shared memory in quads of 4 columns: a chunk
// of 4 taps meets a window of 7 inputs.
template <class T, int kRows>
struct FmaTile {
  using Place = FmaPlace<T>;
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

  // Steps of which any output row may be outside the filter: every row costs a branch.
  template <int kLow, int kHigh>
  __device__ __forceinline__ void edge(Place& p, int stop, int f_rows, int rows) {
#pragma unroll 1
    for (; p.k < stop; p.step(1)) {
      const int low = max(0, p.k - f_rows + 1), high = min(rows - 1, p.k);
      const ptx::Quad<T> a = ptx::load_quad(p.x);
      ptx::Quad<T> b{};
      if constexpr (kHigh > 1) b = ptx::load_quad(p.x + 4);
#pragma unroll
      for (int i = 0; i < kRows; ++i)
        if (i >= low && i <= high) add<kLow, kHigh>(i, a, b, ptx::load_quad(p.f - i * p.f_pitch));
    }
  }

  // Steps that meet every output row.
  template <int kLow, int kHigh>
  __device__ __forceinline__ void full(Place& p, int stop) {
#pragma unroll 1
    for (; p.k < stop; p.step(1)) {
      const ptx::Quad<T> a = ptx::load_quad(p.x);
      ptx::Quad<T> b{};
      if constexpr (kHigh > 1) b = ptx::load_quad(p.x + 4);
#pragma unroll
      for (int i = 0; i < kRows; ++i) add<kLow, kHigh>(i, a, b, ptx::load_quad(p.f - i * p.f_pitch));
    }
  }

  // The first kRows - 1 steps, if the tile starts with them (rising), then trips * kRows that meet every output row.
  // A filter row is loaded once and passed between output rows in registers: at step u of a trip, row i uses
  // w[(u - i) mod kRows].
  template <int kLow, int kHigh>
  __device__ __forceinline__ void steady(Place& p, bool rising, int trips) {
    ptx::Quad<T> w[kRows];
    if (rising) {
#pragma unroll
      for (int u = 0; u + 1 < kRows; ++u, p.step(1)) {
        w[u + 1] = ptx::load_quad(p.f);
        const ptx::Quad<T> a = ptx::load_quad(p.x), b = ptx::load_quad(p.x + 4);
#pragma unroll
        for (int i = 0; i <= u; ++i) add<kLow, kHigh>(i, a, b, w[u + 1 - i]);
      }
    } else {
#pragma unroll
      for (int i = 1; i < kRows; ++i) w[kRows - i] = ptx::load_quad(p.f - i * p.f_pitch);
    }
#pragma unroll 1
    for (; trips > 0; --trips) {
#pragma unroll
      for (int u = 0; u < kRows; ++u, p.step(1)) {
        w[u] = ptx::load_quad(p.f);
        const ptx::Quad<T> a = ptx::load_quad(p.x), b = ptx::load_quad(p.x + 4);
#pragma unroll
        for (int i = 0; i < kRows; ++i) add<kLow, kHigh>(i, a, b, w[(u - i + kRows) % kRows]);
      }
    }
  }

  // The last kRows - 1 steps: the filter has ended for the first output row, then for the second ...
  template <int kLow, int kHigh>
  __device__ __forceinline__ void falling(Place& p) {
    ptx::Quad<T> w[kRows];
#pragma unroll
    for (int d = 0; d + 1 < kRows; ++d) w[d] = ptx::load_quad(p.f - (d + 1) * p.f_pitch);
#pragma unroll
    for (int u = 0; u + 1 < kRows; ++u, p.step(1)) {
      const ptx::Quad<T> a = ptx::load_quad(p.x), b = ptx::load_quad(p.x + 4);
#pragma unroll
      for (int i = u + 1; i < kRows; ++i) add<kLow, kHigh>(i, a, b, w[i - u - 1]);
    }
  }

  // Steps p.k ... k_end of taps [kLow, kHigh) of a chunk. The filter has f_rows rows, the tile's output has rows.
  template <int kLow, int kHigh>
  __device__ __forceinline__ void part(Place p, int k_end, int f_rows, int rows) {
    constexpr bool kWhole = kHigh == 4 && (kLow == 0 || sizeof(T) == 4);  // else rare or not tuned
    const bool rising = kWhole && p.k == 0 && min(f_rows, k_end) >= kRows - 1;
    int stop = rising ? 0 : min(k_end, kRows - 1);
    bool falls = false;
#pragma unroll 1
    for (bool head = true;; head = false) {  // one copy of the code for both ends
      edge<kLow, kHigh>(p, stop, f_rows, rows);
      if (!head) break;
      const int full_end = min(k_end, f_rows);
      if constexpr (kWhole) {
        const int trips = max(0, full_end - max(p.k, kRows - 1)) / kRows;
        if (rising || trips > 0) steady<kLow, kHigh>(p, rising, trips);
      }
      full<kLow, kHigh>(p, full_end);
      falls = kWhole && p.k == f_rows && k_end == f_rows + kRows - 1 && f_rows >= kRows - 1;
      stop = falls ? p.k : k_end;
    }
    if constexpr (kWhole)
      if (falls) falling<kLow, kHigh>(p);
  }

  // Taps [low, high): all, the last 3 (of the first chunk of a filter of 4m + 3 taps), the first 2 or 1.
  __device__ __forceinline__ void chunk(int low, int high, const Place& p, int k_end, int f_rows, int rows) {
    if (low == 0 && high == 4) part<0, 4>(p, k_end, f_rows, rows);
    else if (high == 4) part<1, 4>(p, k_end, f_rows, rows);
    else if (high == 2) part<0, 2>(p, k_end, f_rows, rows);
    else part<0, 1>(p, k_end, f_rows, rows);
  }
};

// A part of some planes: rows [y, y + rows) x columns [x, x + pitch), then tail elements, zeros outside the plane.
struct FmaPart {
  int y, x, rows, pitch, tail, plane;  // plane: elements of shared memory between planes
  int h, w;
};

// Planes are [image][channel]; a warp's lanes go along channels (channel_lanes of them), columns (1 << lanes_log2), and
// rows.
template <class T>
__device__ __forceinline__ void load_part(T* to, const T* from, const FmaStrides& s, const FmaPart& p, int image,
                                          int images, int image_end, int channel, int channels, int channel_end,
                                          int channel_lanes, int lanes_log2) {
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, warps = blockDim.x >> 5;
  const int own_channel = lane & (channel_lanes - 1), column_lanes = 1 << lanes_log2;
  const int place = lane / channel_lanes, column = place & (column_lanes - 1);
  const int row_lanes = 32 / channel_lanes / column_lanes;
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
      if (inside && static_cast<unsigned>(ix) < static_cast<unsigned>(p.w))
        ptx::cp_async<sizeof(T)>(target + x, source + ix * s.x);
      else target[x] = T(0);
    }
  }
}

}  // namespace replknet_ext::cuda
