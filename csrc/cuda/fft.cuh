// Depthwise convolution by FFT in shared memory, float32: one block one channel, looping over (image, tile) pairs.
//
// The circular length L = Q P is the same for rows and columns, a product of coprime factors (Good and Thomas): place n
// stands at (n mod Q, n mod P), a transform is one of size Q over the first residue and one of size P over the second,
// without twiddles. Every thread computes whole transforms of size Q or P in registers, in place in shared memory: all
// offsets of an item are known when compiling.
//
// Two rows of one window are the real and imaginary part of one complex row (FftWindow::order says which); no image
// ever meets another one. Z: [row pair][place] complex, filled by asynchronous copies while the columns of the image
// before are computed. The transform of size P over rows is done for the classes q and -q of the first residue
// together: they untangle to the half spectrum S: [column][place] complex. Columns are transformed, multiplied by the
// filter's spectrum, which stays in registers for the block's life, and transformed back in place; the inverse over
// rows is in place in S: complex place (q, b) of a row pair stands in the column that (q, b) untangled to, at the
// pair's first row for the classes 0 ... Q / 2, at its second row for the others.
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

struct FftItem {  // a tile of an image
  int image, tile_y, tile_x;

  __device__ __forceinline__ FftItem(const FftArgs& a, int64_t item) {
    const int tiles = a.tiles_y * a.tiles_x;
    image = static_cast<int>(item / tiles);
    const int tile = static_cast<int>(item - static_cast<int64_t>(image) * tiles);
    tile_y = tile / a.tiles_x, tile_x = tile - tile_y * a.tiles_x;
  }
  __device__ __forceinline__ void advance(const FftArgs& a) {
    if (++tile_x < a.tiles_x) return;
    tile_x = 0;
    if (++tile_y < a.tiles_y) return;
    tile_y = 0, ++image;
  }
};

template <int kQ, int kP, int kA, int kS, int kAz, int kZs, int kThreads>
struct Fft {
  static constexpr int L = kQ * kP, kColumns = fft_columns(kQ, kP);
  static constexpr int kSelf = fft_self_columns(kP), kClasses = kQ / 2 + 1;
  static constexpr int kRounds = (kColumns * kQ + kThreads - 1) / kThreads;  // middle items of a thread

  // By window coordinate, and which places of a residue hold data. Index 0, 1: the sources, 2: what is written.
  struct Tables {
    uint32_t y[3][L];  // of a row: its number, and its place in S << 16
    uint16_t x[2][L];  // of a column: its place in Z
    uint16_t to_x[L];  // column of S of an output column, + kHalf where it is in the second half
    uint32_t in_x[2][kP], in_y[3][kP];
  };
  static constexpr int kHalf = 1 << 15;
  static_assert(sizeof(Tables) <= fft_tables_bytes(kQ, kP) && L <= sizeof FftWindow::order);

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
    const FftWindow* windows[] = {&a.from[0], &a.from[1], &a.to};
    for (int n = threadIdx.x; n < L; n += kThreads) {
      for (int w = 0; w < 3; ++w) {
        const int row = windows[w]->order[n], m = (row + windows[w]->slot_y) % L;
        t->y[w][n] = static_cast<uint32_t>(row | (m % kQ * kA + m % kP) << 16);
        const int k = (n + windows[w]->slot_x) % L;
        if (w < 2) t->x[w][n] = static_cast<uint16_t>(k % kQ * kAz + k % kP);
      }
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

  // Starts the copy of a window into Z. Half a warp copies 16 columns of a pair's first row, the other half of its
  // second.
  __device__ __forceinline__ void load(const FftArgs& a, int which, int channel, const FftItem& item) const {
    constexpr int kChunks = (L + 15) / 16;
    const FftWindow& w = a.from[which];
    const int top = item.tile_y * w.step_y + w.origin_y, left = item.tile_x * w.step_x + w.origin_x;
    const int second = threadIdx.x >> 4 & 1, lane = threadIdx.x & 15;
    const float* plane = a.source[which] + item.image * w.image + channel * w.channel + (left + lane) * w.column;
    float* to = reinterpret_cast<float*>(z) + second;
    int place[kChunks];
    uint32_t inside = 0;
    each<kChunks>([&](auto c) {
      const int x = c * 16 + lane;
      inside |= (static_cast<unsigned>(left + x) < static_cast<unsigned>(w.width) ? 1u : 0u) << c;
      place[c] = x < w.columns ? 2 * t->x[which][x] : -1;
    });
#pragma unroll 1
    for (int p = threadIdx.x >> 5; p < w.pairs; p += kThreads / 32) {
      const int r = static_cast<int>(t->y[which][p + (second ? w.pairs : 0)] & 0xffff), iy = top + r;
      const bool row = r < w.rows && static_cast<unsigned>(iy) < static_cast<unsigned>(w.height);
      const float* from = plane + iy * w.row;
      each<kChunks>([&](auto c) {
        if (place[c] >= 0) {
          if (row && (inside >> c & 1)) ptx::cp_async<4>(to + p * (2 * kZs) + place[c], from + c * 16 * w.column);
          else to[p * (2 * kZs) + place[c]] = 0.f;
        }
      });
    }
    ptx::cp_async_commit();
  }

  // Items (row pair, rest): lanes follow each other in the row pair. use(row pair, rest)
  template <class Use>
  __device__ __forceinline__ static void items(const FftWindow& w, int rests, const Use& use) {
    const int padded = w.padded, count = padded * rests, pairs = w.pairs;
    const uint32_t magic = w.magic;
#pragma unroll 1
    for (int item = threadIdx.x; item < count; item += kThreads) {
      const int rest = static_cast<int>(item * magic >> 20), p = item - rest * padded;
      if (p < pairs) use(p, rest);
    }
  }
  __device__ __forceinline__ int place(int which, int row) const { return static_cast<int>(t->y[which][row] >> 16); }

  // Rows, first half: transforms of size Q in Z.
  __device__ __forceinline__ void rows_first(const FftWindow& w, int which) const {
    items(w, kP, [&](int p, int b) {
      Complex* row = z + p * kZs + b;
      const uint32_t mask = t->in_x[which][b];
      Complex v[kQ];
      each<kQ>([&](auto q) {
        v[q] = {0.f, 0.f};
        if (mask >> q & 1) v[q] = ptx::load_shared8(row + q * kAz);
      });
      dft<kQ, -1>(v);
      each<kQ>([&](auto q) { ptx::store_shared8(row + q * kAz, v[q]); });
    });
  }

  // Rows, second half: transforms of size P of the classes q and -q, untangled into S (twice the spectrum).
  __device__ __forceinline__ void rows_second(const FftWindow& w, int which) const {
    items(w, kClasses, [&](int p, int q) {
      const bool own = self(q);
      Complex u[kP], v[kP];
      const Complex *a = z + p * kZs + q * kAz, *b = z + p * kZs + (kQ - q) * kAz;
      each<kP>([&](auto k) { u[k] = ptx::load_shared8(a + k); });
      dft<kP, -1>(u);
      if (own) {
        each<kP>([&](auto k) { v[k] = u[k]; });
      } else {
        each<kP>([&](auto k) { v[k] = ptx::load_shared8(b + k); });
        dft<kP, -1>(v);
      }
      Complex* to = s + first_column(q) * kS;
      const int y0 = place(which, p), y1 = place(which, p + w.pairs);
      each<kP>([&](auto k) {
        const Complex mirror = v[(kP - k) % kP];
        if (k < kSelf || !own) {
          ptx::store_shared8(to + k * kS + y0, Complex{u[k].re + mirror.re, u[k].im - mirror.im});
          ptx::store_shared8(to + k * kS + y1, Complex{u[k].im + mirror.im, mirror.re - u[k].re});
        }
      });
    });
  }

  // Columns, first and last part: transforms of size Q. Rows outside the window are zero, or not wanted.
  template <int kSign>
  __device__ __forceinline__ void columns(const uint32_t* rows) const {
#pragma unroll 1
    for (int item = threadIdx.x; item < kColumns * kP; item += kThreads) {
      const int b = item / kColumns, c = item - b * kColumns;
      Complex* column = s + c * kS + b;
      const uint32_t mask = rows[b];
      Complex v[kQ];
      each<kQ>([&](auto q) {
        v[q] = {0.f, 0.f};
        if (kSign > 0 || (mask >> q & 1)) v[q] = ptx::load_shared8(column + q * kA);
      });
      dft<kQ, kSign>(v);
      each<kQ>([&](auto q) {
        if (kSign < 0 || (mask >> q & 1)) ptx::store_shared8(column + q * kA, v[q]);
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
        use(round, s + c * kS + q * kA);
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

  __device__ __forceinline__ void rows_inverse_first(const FftWindow& w) const {
    items(w, kClasses, [&](int p, int q) {
      const bool own = self(q);
      Complex *from = s + first_column(q) * kS, *s0 = from + place(2, p), *s1 = from + place(2, p + w.pairs);
      Complex u[kP], v[kP];
      each<kP>([&](auto k) {
        u[k] = v[(kP - k) % kP] = {0.f, 0.f};
        if (k < kSelf || !own) {
          const Complex a = ptx::load_shared8(s0 + k * kS), b = ptx::load_shared8(s1 + k * kS);
          u[k] = {a.re - b.im, a.im + b.re};
          v[(kP - k) % kP] = {a.re + b.im, b.re - a.im};
        }
      });
      if (own) each<kP - kSelf>([&](auto k) { u[kSelf + k] = v[kSelf + k]; });
      dft<kP, 1>(u);
      each<kP>([&](auto b) {
        if (b < kSelf || !own) ptx::store_shared8(s0 + b * kS, u[b]);
        else ptx::store_shared8(s1 + (b - kSelf) * kS, u[b]);
      });
      if (!own) {
        dft<kP, 1>(v);
        each<kP>([&](auto b) { ptx::store_shared8(s1 + b * kS, v[b]); });
      }
    });
  }

  __device__ __forceinline__ void rows_inverse_second(const FftWindow& w) const {
    items(w, kP, [&](int p, int b) {
      const int y0 = place(2, p), y1 = place(2, p + w.pairs);
      Complex *low = s + b * kS + y0, *high = s + b * kS + y1, *own = b < kSelf ? low : high - kSelf * kS;
      const auto at = [&](int q) {
        return self(q) ? own + first_column(q) * kS
                       : 2 * q < kQ ? low + first_column(q) * kS : high + first_column(kQ - q) * kS;
      };
      Complex v[kQ];
      each<kQ>([&](auto q) { v[q] = ptx::load_shared8(at(q)); });
      dft<kQ, 1>(v);
      each<kQ>([&](auto q) { ptx::store_shared8(at(q), v[q]); });
    });
  }

  // Stores what is wanted of a window: rows x columns of it from `out` on. Lanes follow each other in a row.
  template <class Use>
  __device__ __forceinline__ void store(const FftWindow& w, float* out, int rows, int columns, const Use& use) const {
    constexpr int kChunks = (L + 31) / 32;
    const int lane = threadIdx.x & 31;
    int column[kChunks];
    each<kChunks>([&](auto c) { column[c] = c * 32 + lane < columns ? t->to_x[c * 32 + lane] : 0; });
    out += lane * w.column;
#pragma unroll 1
    for (int p = threadIdx.x >> 5; p < w.pairs; p += kThreads / 32) {
      const uint32_t first = t->y[2][p], second = t->y[2][p + w.pairs];
      const int row0 = static_cast<int>(first & 0xffff), row1 = static_cast<int>(second & 0xffff);
      float *to0 = out + row0 * w.row, *to1 = out + row1 * w.row;
      each<kChunks>([&](auto c) {
        if (c * 32 + lane < columns) {
          const uint32_t row = (column[c] < kHalf ? first : second) >> 16;
          const Complex v = ptx::load_shared8(s + (column[c] & (kHalf - 1)) * kS + row);
          if (row0 < rows) to0[c * 32 * w.column] = use(v.re);
          if (row1 < rows) to1[c * 32 * w.column] = use(v.im);
        }
      });
    }
  }
};

template <int kQ, int kP, int kA, int kS, int kAz, int kZs, int kThreads, int kBlocks>
__global__ void __launch_bounds__(kThreads, kBlocks) fft_fwd_kernel(const __grid_constant__ FftArgs a) {
  using Transform = Fft<kQ, kP, kA, kS, kAz, kZs, kThreads>;
  DYN_SMEM(smem);
  auto* tables = reinterpret_cast<typename Transform::Tables*>(smem);
  Transform f;
  f.t = tables;
  f.s = reinterpret_cast<Complex*>(smem + fft_tables_bytes(kQ, kP));
  f.z = f.s + Transform::kColumns * kS;
  const int channel = static_cast<int>(blockIdx.x / a.splits);
  const int64_t first = static_cast<int64_t>(blockIdx.x - static_cast<unsigned>(channel) * a.splits) * a.split_items;
  const int count = static_cast<int>(min(a.split_items, a.items - first));
  FftItem next(a, first);
  const float bias = a.bias ? a.bias[channel] : 0.f;

  Transform::build(tables, a);
  __syncthreads();
  f.load(a, 0, channel, FftItem(a, 0));
  Complex filter[Transform::kRounds][kP];  // conjugate and scaled
#pragma unroll 1
  for (int step = -1; step < count; ++step) {  // the filter is the item before the first
    const int which = step < 0 ? 0 : 1;
    const FftWindow& w = a.from[which];
    ptx::cp_async_wait<0>();
    __syncthreads();
    f.rows_first(w, which);
    __syncthreads();
    f.rows_second(w, which);
    __syncthreads();
    const FftItem now = next;
    if (step >= 0) next.advance(a);
    if (step + 1 < count) f.load(a, 1, channel, next);
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
    f.rows_inverse_first(a.to);
    __syncthreads();
    f.rows_inverse_second(a.to);
    __syncthreads();
    const int top = now.tile_y * a.to.step_y, left = now.tile_x * a.to.step_x;
    f.store(a.to, a.out + now.image * a.to.image + channel * a.to.channel + top * a.to.row + left * a.to.column,
            min(a.to.rows, a.to.height - top), min(a.to.columns, a.to.width - left),
            [&](float v) { return fft_activate(v + bias, a.activation); });
  }
}

template <int kQ, int kP, int kA, int kS, int kAz, int kZs, int kThreads, int kBlocks>
__global__ void __launch_bounds__(kThreads, kBlocks) fft_weight_kernel(const __grid_constant__ FftArgs a) {
  using Transform = Fft<kQ, kP, kA, kS, kAz, kZs, kThreads>;
  DYN_SMEM(smem);
  auto* tables = reinterpret_cast<typename Transform::Tables*>(smem);
  Transform f;
  f.t = tables;
  f.s = reinterpret_cast<Complex*>(smem + fft_tables_bytes(kQ, kP));
  f.z = f.s + Transform::kColumns * kS;
  const int channel = static_cast<int>(blockIdx.x / a.splits);
  const int split = static_cast<int>(blockIdx.x) - channel * a.splits;
  const int64_t first = split * a.split_items;
  const int count = static_cast<int>(min(a.split_items, a.items - first));
  FftItem item(a, first);

  Transform::build(tables, a);
  __syncthreads();
  if (count > 0) f.load(a, 0, channel, item);
  Complex sum[Transform::kRounds][kP], gradient[Transform::kRounds][kP];
  each<Transform::kRounds>([&](auto round) { each<kP>([&](auto k) { sum[round][k] = {0.f, 0.f}; }); });
  float total = 0.f;  // thread 0: twice the sum of the gradient, its spectrum at 0
#pragma unroll 1
  for (int step = 0; step < 2 * count; ++step) {
    const int which = step & 1;
    const FftWindow& w = a.from[which];
    ptx::cp_async_wait<0>();
    __syncthreads();
    f.rows_first(w, which);
    __syncthreads();
    f.rows_second(w, which);
    __syncthreads();
    if (which) item.advance(a);
    if (step + 1 < 2 * count) f.load(a, which ^ 1, channel, item);
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
  f.rows_inverse_first(a.to);
  __syncthreads();
  f.rows_inverse_second(a.to);
  __syncthreads();
  float* out = a.out + split * a.out_split + channel * a.to.channel;
  f.store(a.to, out + a.to.origin_y * a.to.row + a.to.origin_x, a.to.rows, a.to.columns, [](float v) { return v; });
  // taps that no output meets
  for (int64_t i = threadIdx.x; i < a.to.channel; i += kThreads) {
    const int row = static_cast<int>(i / a.to.row) - a.to.origin_y;
    const int column = static_cast<int>(i % a.to.row) - a.to.origin_x;
    if (row < 0 || row >= a.to.rows || column < 0 || column >= a.to.columns) out[i] = 0.f;
  }
  if (a.grad_bias && threadIdx.x == 0) a.grad_bias[split * static_cast<int64_t>(a.channels) + channel] = 0.5f * total;
}

}  // namespace replknet_ext::cuda
