// Depthwise convolution by FFT in shared memory, float32: one block one channel, looping over (image, tile) pairs.
//
// The circular length L = Q P is the same for rows and columns and a product of coprime factors (Good and Thomas): place
// n stands at (n mod Q, n mod P), a transform is one of size Q over the first residue and one of size P over the
// second, without twiddles. Every thread computes whole transforms of size Q or P in registers, in place in shared
// memory: all offsets of an item are known when compiling.
//
// Rows p and p + R of one window (R: half of its rows) are the real and imaginary part of one complex row; no image ever
// meets another one. Z: [row pair][place] complex, filled by asynchronous copies while the columns of the image before
// are computed. The transform of size P over rows is done for the classes q and -q of the first residue together: they
// untangle to the half spectrum S: [column][place] complex. Columns are transformed, multiplied by the filter's spectrum,
// which stays in registers for the block's life, and transformed back in place; the inverse over rows is in place in S:
// complex place (q, b) of row pair (p, p + R) stands in the column that (q, b) untangled to, at row p for the classes
// 0 ... Q / 2, at row p + R for the others.
//
// bwd_weight: the spectra X conj(G) are summed in registers over the block's images in order, then one inverse.
// Non-finite values fill their tile of their plane, no other.
#pragma once
#include "fft_args.h"
#include "fft_codelets.cuh"
#include "fft_variants.h"

namespace replknet_ext::cuda {

__device__ __forceinline__ float fft_activate(float v, int activation) {
  if (activation == 1) return v > 0.f || v != v ? v : 0.f;                       // relu keeps NaN, as torch does
  if (activation == 2) return 0.5f * v * (1.f + erff(v * 0.70710678118654752f));  // gelu by erf
  return v;
}

template <int kQ, int kP, int kThreads, bool kWeight>
struct Fft {
  static constexpr int L = kQ * kP, kStride = fft_stride(L), kColumns = fft_columns(kQ, kP);
  static constexpr int kSelf = fft_self_columns(kP), kClasses = kQ / 2 + 1;
  static constexpr int kRounds = (kColumns * kQ + kThreads - 1) / kThreads;  // middle items of a thread

  // Places by window coordinate, and which places of a residue hold data. Index 0, 1: the sources, 2: what is written.
  struct Tables {
    uint16_t x[2][L];    // of a column in Z
    uint16_t y[3][L];    // of a row in S
    uint16_t to_x[L];    // column of S of an output column, + kHalf where it is in the second half
    uint32_t in_x[2][kP], in_y[3][kP];
  };
  static constexpr int kHalf = 1 << 15;
  static_assert(sizeof(Tables) <= fft_tables_bytes(kQ, kP));

  Complex *s, *z;
  const Tables* t;

  // The columns of class q start here.
  __device__ __forceinline__ static int first_column(int q) { return q ? kSelf + (q - 1) * kP : 0; }
  __device__ __forceinline__ static bool self(int q) { return q == 0 || 2 * q == kQ; }

  __host__ __device__ static constexpr int idempotent() {  // 1 mod Q, 0 mod P
    int n = 0;
    while (n % kQ != 1 % kQ) n += kP;
    return n;
  }

  __device__ __forceinline__ static void build(Tables* t, const FftArgs& a) {
    constexpr int kE = idempotent(), kF = (L + 1 - kE) % L;
    auto place = [](int n) { return static_cast<uint16_t>(n % kQ * kP + n % kP); };
    for (int n = threadIdx.x; n < L; n += kThreads) {
      t->x[0][n] = place((n + a.from[0].slot_x) % L), t->x[1][n] = place((n + a.from[1].slot_x) % L);
      t->y[0][n] = place((n + a.from[0].slot_y) % L), t->y[1][n] = place((n + a.from[1].slot_y) % L);
      t->y[2][n] = place((n + a.to.slot_y) % L);
      const int m = (n + a.to.slot_x) % L, q = m % kQ, b = m % kP, mirror = kQ - q;
      const bool low = self(q) ? b < kSelf : q < mirror;
      const int column = self(q) ? first_column(q) + (low ? b : b - kSelf) : first_column(low ? q : mirror) + b;
      t->to_x[n] = static_cast<uint16_t>(column + (low ? 0 : kHalf));
    }
    for (int i = threadIdx.x; i < 5 * kP; i += kThreads) {
      const int b = i % kP, which = i / kP;
      const FftWindow& w = which == 0 || which == 2 ? a.from[0] : which == 4 ? a.to : a.from[1];
      const int slot = which < 2 ? w.slot_x : w.slot_y;
      // written rows come in pairs: a row more than wanted where their number is odd
      const int count = which < 2 ? w.columns : which == 4 ? (w.rows + 1) / 2 * 2 : w.rows;
      uint32_t mask = 0;
      for (int q = 0; q < kQ; ++q) mask |= ((q * kE + b * kF + L - slot) % L < count ? 1u : 0u) << q;
      (which < 2 ? t->in_x[which] : t->in_y[which - 2])[b] = mask;
    }
  }

  // Starts the copy of a window into Z. Half a warp copies 16 columns of row p, the other half of row p + R.
  __device__ __forceinline__ void load(const FftArgs& a, int which, int64_t image, int channel, int tile_y,
                                       int tile_x) const {
    const FftWindow& w = a.from[which];
    const int pairs = (w.rows + 1) / 2, top = tile_y * w.step_y + w.origin_y, left = tile_x * w.step_x + w.origin_x;
    const int second = (threadIdx.x >> 4 & 1) * pairs, warp = threadIdx.x >> 5;
    // row pairs whose row of this half a warp exists
    const int first = max(0, -top - second), last = min(min(pairs, w.rows - second), w.height - top - second);
    const float* rows = a.source[which] + image * w.image + channel * w.channel + (top + second + warp) * w.row;
    const int64_t down = kThreads / 32 * w.row;
    for (int x = threadIdx.x & 15; x < w.columns; x += 16) {
      const int ix = left + x;
      const unsigned count = static_cast<unsigned>(ix) < static_cast<unsigned>(w.width) ? max(0, last - first) : 0;
      float* to = reinterpret_cast<float*>(z + warp * kStride + t->x[which][x]) + (second ? 1 : 0);
      const float* from = rows + ix * w.column;
      for (int p = warp; p < pairs; p += kThreads / 32, from += down, to += kThreads / 16 * kStride) {
        if (static_cast<unsigned>(p - first) < count) ptx::cp_async<4>(to, from);
        else *to = 0.f;
      }
    }
    ptx::cp_async_commit();
  }

  // Items by (row pair or column, the rest): lanes follow each other in the first.
  struct Items {
    int count;
    uint32_t magic;
    __device__ __forceinline__ explicit Items(int n) : count(n), magic((1u << 20) / max(n, 1) + 1) {}
    __device__ __forceinline__ int rest(int item) const { return static_cast<int>(item * magic >> 20); }
  };

  // Rows, first half: transforms of size Q in Z.
  __device__ __forceinline__ void rows_first(int which, int pairs) const {
    const Items by(pairs);
#pragma unroll 1
    for (int item = threadIdx.x; item < pairs * kP; item += kThreads) {
      const int b = by.rest(item), p = item - b * pairs;
      Complex* row = z + p * kStride + b;
      const uint32_t mask = t->in_x[which][b];
      Complex v[kQ];
      each<kQ>([&](auto q) {
        v[q] = {0.f, 0.f};
        if (mask >> q & 1) v[q] = ptx::load_shared8(row + q * kP);
      });
      dft<kQ, -1>(v);
      each<kQ>([&](auto q) { ptx::store_shared8(row + q * kP, v[q]); });
    }
  }

  // Rows, second half: transforms of size P of the classes q and -q, untangled into S (twice the spectrum).
  __device__ __forceinline__ void rows_second(int which, int pairs) const {
    const Items by(pairs);
#pragma unroll 1
    for (int item = threadIdx.x; item < pairs * kClasses; item += kThreads) {
      const int q = by.rest(item), p = item - q * pairs;
      const bool own = self(q);
      Complex u[kP], v[kP];
      const Complex *a = z + p * kStride + q * kP, *b = z + p * kStride + (kQ - q) * kP;
      each<kP>([&](auto k) { u[k] = ptx::load_shared8(a + k); });
      dft<kP, -1>(u);
      if (own) {
        each<kP>([&](auto k) { v[k] = u[k]; });
      } else {
        each<kP>([&](auto k) { v[k] = ptx::load_shared8(b + k); });
        dft<kP, -1>(v);
      }
      Complex* to = s + first_column(q) * kStride;
      const int y0 = t->y[which][p], y1 = t->y[which][p + pairs];
      each<kP>([&](auto k) {
        const Complex mirror = v[(kP - k) % kP];
        if (k < kSelf || !own) {
          ptx::store_shared8(to + k * kStride + y0, Complex{u[k].re + mirror.re, u[k].im - mirror.im});
          ptx::store_shared8(to + k * kStride + y1, Complex{u[k].im + mirror.im, mirror.re - u[k].re});
        }
      });
    }
  }

  // Columns, first and last part: transforms of size Q. Rows outside the window are zero, or not wanted.
  template <int kSign>
  __device__ __forceinline__ void columns(const uint32_t* rows) const {
#pragma unroll 1
    for (int item = threadIdx.x; item < kColumns * kP; item += kThreads) {
      const int b = item / kColumns, c = item - b * kColumns;
      Complex* column = s + c * kStride + b;
      const uint32_t mask = rows[b];
      Complex v[kQ];
      each<kQ>([&](auto q) {
        v[q] = {0.f, 0.f};
        if (kSign > 0 || (mask >> q & 1)) v[q] = ptx::load_shared8(column + q * kP);
      });
      dft<kQ, kSign>(v);
      each<kQ>([&](auto q) {
        if (kSign < 0 || (mask >> q & 1)) ptx::store_shared8(column + q * kP, v[q]);
      });
    }
  }

  // use(round, v): a thread's items of the middle, v = P numbers of the spectrum that follow each other in a column
  template <class Use>
  __device__ __forceinline__ void middle(const Use& use) const {
    each<kRounds>([&](auto round) {
      const int item = threadIdx.x + round * kThreads;
      if (item < kColumns * kQ) {
        const int q = item / kColumns, c = item - q * kColumns;
        use(round, s + c * kStride + q * kP);
      }
    });
  }
  __device__ __forceinline__ static void forward(const Complex* from, Complex (&v)[kP]) {
    each<kP>([&](auto k) { v[k] = ptx::load_shared8(from + k); });
    dft<kP, -1>(v);
  }
  __device__ __forceinline__ static void inverse(Complex* to, Complex (&v)[kP]) {
    dft<kP, 1>(v);
    each<kP>([&](auto k) { ptx::store_shared8(to + k, v[k]); });
  }

  __device__ __forceinline__ void rows_inverse_first(int pairs) const {
    const Items by(pairs);
#pragma unroll 1
    for (int item = threadIdx.x; item < pairs * kClasses; item += kThreads) {
      const int q = by.rest(item), p = item - q * pairs;
      const bool own = self(q);
      Complex *from = s + first_column(q) * kStride, *s0 = from + t->y[2][p], *s1 = from + t->y[2][p + pairs];
      Complex u[kP], v[kP];
      each<kP>([&](auto k) {
        u[k] = v[(kP - k) % kP] = {0.f, 0.f};
        if (k < kSelf || !own) {
          const Complex a = ptx::load_shared8(s0 + k * kStride), b = ptx::load_shared8(s1 + k * kStride);
          u[k] = {a.re - b.im, a.im + b.re};
          v[(kP - k) % kP] = {a.re + b.im, b.re - a.im};
        }
      });
      if (own) each<kP - kSelf>([&](auto k) { u[kSelf + k] = v[kSelf + k]; });
      dft<kP, 1>(u);
      each<kP>([&](auto b) {
        if (b < kSelf || !own) ptx::store_shared8(s0 + b * kStride, u[b]);
        else ptx::store_shared8(s1 + (b - kSelf) * kStride, u[b]);
      });
      if (!own) {
        dft<kP, 1>(v);
        each<kP>([&](auto b) { ptx::store_shared8(s1 + b * kStride, v[b]); });
      }
    }
  }

  __device__ __forceinline__ void rows_inverse_second(int pairs) const {
    const Items by(pairs);
#pragma unroll 1
    for (int item = threadIdx.x; item < pairs * kP; item += kThreads) {
      const int b = by.rest(item), p = item - b * pairs, y0 = t->y[2][p], y1 = t->y[2][p + pairs];
      Complex *low = s + b * kStride + y0, *high = s + b * kStride + y1, *own = b < kSelf ? low : high - kSelf * kStride;
      const auto at = [&](int q) {
        return self(q) ? own + first_column(q) * kStride
                       : 2 * q < kQ ? low + first_column(q) * kStride : high + first_column(kQ - q) * kStride;
      };
      Complex v[kQ];
      each<kQ>([&](auto q) { v[q] = ptx::load_shared8(at(q)); });
      dft<kQ, 1>(v);
      each<kQ>([&](auto q) { ptx::store_shared8(at(q), v[q]); });
    }
  }

  // Stores what is wanted of a window: rows x columns of it from `out` on. Lanes follow each other in a row.
  template <class Use>
  __device__ __forceinline__ void store(const FftWindow& w, float* out, int rows, int columns, const Use& use) const {
    const int pairs = (w.rows + 1) / 2, warp = threadIdx.x >> 5;
    const int64_t down = kThreads / 32 * w.row, second = pairs * w.row;
    out += warp * w.row;
    for (int x = threadIdx.x & 31; x < columns; x += 32) {
      const int place = t->to_x[x];
      const Complex* column = s + (place & (kHalf - 1)) * kStride;
      const uint16_t* y = t->y[2] + (place & kHalf ? pairs : 0) + warp;
      float* to = out + x * w.column;
      for (int p = warp; p < min(pairs, rows); p += kThreads / 32, to += down, y += kThreads / 32) {
        const Complex v = ptx::load_shared8(column + *y);
        *to = use(v.re);
        if (p + pairs < rows) to[second] = use(v.im);
      }
    }
  }
};

template <int kQ, int kP, int kThreads, int kBlocks>
__global__ void __launch_bounds__(kThreads, kBlocks) fft_fwd_kernel(const __grid_constant__ FftArgs a) {
  using Transform = Fft<kQ, kP, kThreads, false>;
  DYN_SMEM(smem);
  auto* tables = reinterpret_cast<typename Transform::Tables*>(smem);
  Transform f;
  f.t = tables;
  f.s = reinterpret_cast<Complex*>(smem + fft_tables_bytes(kQ, kP));
  f.z = f.s + Transform::kColumns * Transform::kStride;
  const int channel = static_cast<int>(blockIdx.x / a.splits);
  int64_t item = static_cast<int64_t>(blockIdx.x - static_cast<unsigned>(channel) * a.splits) * a.split_items;
  const int64_t end = item + a.split_items < a.items ? item + a.split_items : a.items;
  const int tiles = a.tiles_y * a.tiles_x, out_pairs = (a.to.rows + 1) / 2;
  const float bias = a.bias ? a.bias[channel] : 0.f;

  Transform::build(tables, a);
  __syncthreads();
  f.load(a, 0, 0, channel, 0, 0);
  Complex filter[Transform::kRounds][kP];  // conjugate and scaled
  --item;                                  // the filter is the item before the first
#pragma unroll 1
  for (int which = 0; item < end; which = 1, ++item) {
    const int pairs = (a.from[which].rows + 1) / 2;
    ptx::cp_async_wait<0>();
    __syncthreads();
    f.rows_first(which, pairs);
    __syncthreads();
    f.rows_second(which, pairs);
    __syncthreads();
    const int64_t next = item + 1, next_image = next / tiles;
    const int next_tile = static_cast<int>(next - next_image * tiles);
    if (next < end) f.load(a, 1, next_image, channel, next_tile / a.tiles_x, next_tile % a.tiles_x);
    f.template columns<-1>(tables->in_y[which]);
    __syncthreads();
    if (which == 0) {
      f.middle([&](auto round, Complex* at) {
        Transform::forward(at, filter[round]);
        each<kP>([&](auto k) { filter[round][k] = {a.scale * filter[round][k].re, -a.scale * filter[round][k].im}; });
      });
      continue;
    }
    f.middle([&](auto round, Complex* at) {
      Complex v[kP];
      Transform::forward(at, v);
      each<kP>([&](auto k) { v[k] = times(v[k], filter[round][k]); });
      Transform::inverse(at, v);
    });
    __syncthreads();
    f.template columns<1>(tables->in_y[2]);
    __syncthreads();
    f.rows_inverse_first(out_pairs);
    __syncthreads();
    f.rows_inverse_second(out_pairs);
    __syncthreads();
    const int64_t image = item / tiles;
    const int tile = static_cast<int>(item - image * tiles);
    const int top = tile / a.tiles_x * a.to.step_y, left = tile % a.tiles_x * a.to.step_x;
    f.store(a.to, a.out + image * a.to.image + channel * a.to.channel + top * a.to.row + left * a.to.column,
            min(a.to.rows, a.to.height - top), min(a.to.columns, a.to.width - left),
            [&](float v) { return fft_activate(v + bias, a.activation); });
  }
}

template <int kQ, int kP, int kThreads, int kBlocks>
__global__ void __launch_bounds__(kThreads, kBlocks) fft_weight_kernel(const __grid_constant__ FftArgs a) {
  using Transform = Fft<kQ, kP, kThreads, true>;
  DYN_SMEM(smem);
  auto* tables = reinterpret_cast<typename Transform::Tables*>(smem);
  Transform f;
  f.t = tables;
  f.s = reinterpret_cast<Complex*>(smem + fft_tables_bytes(kQ, kP));
  f.z = f.s + Transform::kColumns * Transform::kStride;
  const int channel = static_cast<int>(blockIdx.x / a.splits), split = static_cast<int>(blockIdx.x) - channel * a.splits;
  int64_t item = split * a.split_items;
  const int64_t end = item + a.split_items < a.items ? item + a.split_items : a.items;
  const int tiles = a.tiles_y * a.tiles_x, out_pairs = (a.to.rows + 1) / 2;

  Transform::build(tables, a);
  __syncthreads();
  auto load = [&](int which, int64_t next) {
    const int64_t image = next / tiles;
    const int tile = static_cast<int>(next - image * tiles);
    f.load(a, which, image, channel, tile / a.tiles_x, tile % a.tiles_x);
  };
  if (item < end) load(0, item);
  Complex sum[Transform::kRounds][kP], gradient[Transform::kRounds][kP];
  each<Transform::kRounds>([&](auto round) { each<kP>([&](auto k) { sum[round][k] = {0.f, 0.f}; }); });
  float total = 0.f;  // thread 0: twice the sum of the gradient, its spectrum at 0
#pragma unroll 1
  for (int which = 0; item < end; item += which, which ^= 1) {
    const int pairs = (a.from[which].rows + 1) / 2;
    ptx::cp_async_wait<0>();
    __syncthreads();
    f.rows_first(which, pairs);
    __syncthreads();
    f.rows_second(which, pairs);
    __syncthreads();
    if (item + which < end) load(which ^ 1, item + which);
    f.template columns<-1>(tables->in_y[which]);
    __syncthreads();
    if (which == 0) {
      f.middle([&](auto round, Complex* at) { Transform::forward(at, gradient[round]); });
      total += gradient[0][0].re;
    } else {
      f.middle([&](auto round, Complex* at) {
        Complex v[kP];
        Transform::forward(at, v);
        each<kP>([&](auto k) {
          const Complex g = gradient[round][k];
          sum[round][k].re += v[k].re * g.re + v[k].im * g.im;
          sum[round][k].im += v[k].im * g.re - v[k].re * g.im;
        });
      });
    }
  }
  f.middle([&](auto round, Complex* at) {
    each<kP>([&](auto k) { sum[round][k] = {a.scale * sum[round][k].re, a.scale * sum[round][k].im}; });
    Transform::inverse(at, sum[round]);
  });
  __syncthreads();
  f.template columns<1>(tables->in_y[2]);
  __syncthreads();
  f.rows_inverse_first(out_pairs);
  __syncthreads();
  f.rows_inverse_second(out_pairs);
  __syncthreads();
  float* out = a.out + split * a.out_split + channel * a.to.channel;
  f.store(a.to, out + a.to.origin_y * a.to.row + a.to.origin_x, a.to.rows, a.to.columns, [](float v) { return v; });
  // taps that no output meets
  for (int64_t i = threadIdx.x; i < a.to.channel; i += kThreads) {
    const int row = static_cast<int>(i / a.to.row) - a.to.origin_y, column = static_cast<int>(i % a.to.row) - a.to.origin_x;
    if (row < 0 || row >= a.to.rows || column < 0 || column >= a.to.columns) out[i] = 0.f;
  }
  if (a.grad_bias && threadIdx.x == 0) a.grad_bias[split * static_cast<int64_t>(a.channels) + channel] = 0.5f * total;
}

}  // namespace replknet_ext::cuda
