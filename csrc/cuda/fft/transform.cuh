// The transform of a window in shared memory, step by step, and what brings windows in and out. See fft/fft.cuh.
#pragma once
#include "args.h"
#include "codelets.cuh"
#include "variants.h"

namespace replknet_ext::cuda {

// use(Type<dtype>{}): what follows is compiled for each dtype; all threads take the same way.
template <FftDType kValue>
struct FftType {
  __host__ __device__ constexpr operator FftDType() const { return kValue; }
};
template <class Use>
__device__ __forceinline__ void fft_by_dtype(FftDType dtype, const Use& use) {
  if (dtype == FftDType::f32) use(FftType<FftDType::f32>{});
  else if (dtype == FftDType::f16) use(FftType<FftDType::f16>{});
  else use(FftType<FftDType::bf16>{});
}
template <FftDType kType>
__device__ __forceinline__ float fft_read(const unsigned char* from) {
  if constexpr (kType == FftDType::f32) return *reinterpret_cast<const float*>(from);
  else return ptx::to_float<kType == FftDType::bf16>(*reinterpret_cast<const uint16_t*>(from));
}
template <FftDType kType>
__device__ __forceinline__ void fft_write(void* to, int64_t i, float v) {
  if constexpr (kType == FftDType::f32) static_cast<float*>(to)[i] = v;
  else static_cast<uint16_t*>(to)[i] = ptx::from_float<kType == FftDType::bf16>(v);
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

template <int kQ, int kP, int kA, int kB, int kS, int kThreads, bool kMemory>
struct Fft {
  static constexpr int L = kQ * kP, kColumns = fft_columns(kQ, kP);
  static constexpr int kSelf = fft_self_columns(kP), kClasses = kQ / 2 + 1;
  static constexpr int kRounds = (kColumns * kQ + kThreads - 1) / kThreads;  // middle items of a thread

  // By window coordinate, and which places of a residue hold data. Index 0, 1: the sources, 2: what is written.
  struct Tables {
    uint32_t y[3][L];      // of a row: its number, and its place in S << 16
    uint32_t in_y[3][kP];  // of a residue: bit q: place (q, residue) holds a row of the window
    uint16_t x[2][kP];     // of a residue: the window column at place (0, residue)
    uint16_t to_x[L];      // column of S of an output column, + kHalf where it is in the second half
  };
  static constexpr int kHalf = 1 << 15;
  static_assert(sizeof(Tables) <= fft_tables_bytes(kQ, kP) && L <= sizeof FftWindow::order);

  Complex* s;
  unsigned char* raw;
  const Tables* t;

  // The columns of class q start here.
  __device__ __forceinline__ static int first_column(int q) { return q ? kSelf + (q - 1) * kP : 0; }
  __device__ __forceinline__ static bool self(int q) { return q == 0 || 2 * q == kQ; }
  // Place (q, b) of a class that is not its own mirror: columns that follow each other in a row then lie in different
  // banks also where P + 1 is even.
  __host__ __device__ static constexpr int column_of(int b) { return kP % 2 ? 2 * b % kP : b; }

  __host__ __device__ static constexpr int idempotent() {  // 1 mod Q, 0 mod P
    int n = 0;
    while (n % kQ != 1 % kQ) n += kP;
    return n;
  }

  static constexpr int kE = idempotent(), kF = (L + 1 - kE) % L;  // place (q, b) is n = (q kE + b kF) mod L

  __device__ __forceinline__ static void build(Tables* t, const FftArgs& a) {
    for (int n = threadIdx.x; n < L; n += kThreads) {
      for (int which = 0; which < 3; ++which) {
        const FftWindow& w = which == 0 ? a.from[0] : which == 1 ? a.from[1] : a.to;
        const int row = w.order[n], m = (row + w.slot_y) % L;
        t->y[which][n] = static_cast<uint32_t>(row | (m % kQ * kA + m % kP * kB) << 16);
      }
      const int m = (n + a.to.slot_x) % L, q = m % kQ, b = m % kP, mirror = kQ - q;
      const bool low = self(q) ? b < kSelf : q < mirror;
      const int column = self(q) ? first_column(q) + (low ? b : b - kSelf)
                                 : first_column(low ? q : mirror) + column_of(b);
      t->to_x[n] = static_cast<uint16_t>(column + (low ? 0 : kHalf));
    }
    for (int i = threadIdx.x; i < 3 * kP; i += kThreads) {
      const int b = i % kP, which = i / kP;
      const FftWindow& w = which == 0 ? a.from[0] : which == 1 ? a.from[1] : a.to;
      if (which < 2) t->x[which][b] = static_cast<uint16_t>((b * kF + L - w.slot_x) % L);
      // written rows come in pairs: a row more than wanted where their number is odd
      const int count = which == 2 ? (w.rows + 1) / 2 * 2 : w.rows;
      uint32_t mask = 0;
      for (int q = 0; q < kQ; ++q) mask |= ((q * kE + b * kF + L - w.slot_y) % L < count ? 1u : 0u) << q;
      t->in_y[which][b] = mask;
    }
  }

  // Columns before the window's first in `raw`, so that copies of `unit` elements are aligned.
  __device__ __forceinline__ static int skew(const FftWindow& w, const FftItem& item) {
    return (item.tile_x * w.step_x + w.origin_x) & (w.unit - 1);
  }

  // Starts the copy of a window into `raw`, a warp or half of it a row; what lies outside the image becomes zero.
  __device__ __forceinline__ void load(const FftArgs& a, int which, int channel, const FftItem& item) const {
    const FftWindow& w = a.from[which];
    const int top = item.tile_y * w.step_y + w.origin_y, before = skew(w, item);
    const int left = item.tile_x * w.step_x + w.origin_x - before, columns = w.columns + before;
    constexpr int kLanes = L > 28 ? 32 : 16;
    const int element = fft_bytes(a.dtype), lane = (threadIdx.x & (kLanes - 1)) * w.unit, step = kLanes * w.unit;
    const auto* plane = static_cast<const unsigned char*>(a.source[which]) +
                        (item.image * w.image + channel * w.channel) * element;
    const bool words = w.unit * element == 4;
#pragma unroll 1
    for (int r = threadIdx.x / kLanes; r < 2 * w.pairs; r += kThreads / kLanes) {
      const int iy = top + r;
      const bool row = r < w.rows && static_cast<unsigned>(iy) < static_cast<unsigned>(w.height);
      const unsigned char* from = plane + (iy * w.row + (left + lane) * w.column) * element;
      unsigned char* to = raw + r * w.pitch + lane * element;
      const int64_t next = step * w.column * element;
#pragma unroll 4
      for (int x = lane; x < columns; x += step) {
        const bool inside = row && static_cast<unsigned>(left + x) < static_cast<unsigned>(w.width);
        if (words) {
          if (inside) ptx::cp_async<4>(to, from);
          else *reinterpret_cast<uint32_t*>(to) = 0;
        } else {
          *reinterpret_cast<uint16_t*>(to) = inside ? ptx::load_global(reinterpret_cast<const uint16_t*>(from)) : 0;
        }
        from += next, to += step * element;
      }
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

  // Where the complex places (q, b) of a row pair stand, q = 0 ... Q - 1
  struct Places {
    Complex *low, *high, *own;

    __device__ __forceinline__ Places(Complex* s, int y0, int y1, int b)
        : low(s + column_of(b) * kS + y0), high(s + column_of(b) * kS + y1),
          own(s + (b < kSelf ? b * kS + y0 : (b - kSelf) * kS + y1)) {}
    __device__ __forceinline__ Complex* operator()(int q) const {
      return self(q) ? own + first_column(q) * kS
                     : 2 * q < kQ ? low + first_column(q) * kS : high + first_column(kQ - q) * kS;
    }
  };

  // Rows, first half: transforms of size Q, from `raw`.
  __device__ __forceinline__ void rows_first(const FftWindow& w, int which, FftDType dtype, int before) const {
    items(w, kP, [&](int p, int b) {
      const uint32_t first = t->y[which][p], second = t->y[which][p + w.pairs];
      const int x0 = t->x[which][b];
      Complex v[kQ];
      fft_by_dtype(dtype, [&](auto type) {
        constexpr FftDType kType = type;
        constexpr int kBytes = fft_bytes(kType);
        const unsigned char* row0 = raw + (first & 0xffff) * w.pitch + before * kBytes;
        const unsigned char* row1 = raw + (second & 0xffff) * w.pitch + before * kBytes;
        each<kQ>([&](auto q) {
          int x = x0 + q * kE % L;
          if (x >= L) x -= L;
          v[q] = {0.f, 0.f};
          if (x < w.columns) v[q] = {fft_read<kType>(row0 + x * kBytes), fft_read<kType>(row1 + x * kBytes)};
        });
      });
      dft<kQ, -1>(v);
      const Places at(s, static_cast<int>(first >> 16), static_cast<int>(second >> 16), b);
      each<kQ>([&](auto q) { ptx::store_shared8(at(q), v[q]); });
    });
  }

  // Rows, second half: transforms of size P of the classes q and -q, untangled (twice the spectrum).
  __device__ __forceinline__ void rows_second(const FftWindow& w, int which) const {
    items(w, kClasses, [&](int p, int q) {
      const bool own = self(q);
      Complex *from = s + first_column(q) * kS, *s0 = from + place(which, p), *s1 = from + place(which, p + w.pairs);
      const auto untangle = [&](Complex a, Complex mirror, int column) {
        ptx::store_shared8(s0 + column * kS, Complex{a.re + mirror.re, a.im - mirror.im});
        ptx::store_shared8(s1 + column * kS, Complex{a.im + mirror.im, mirror.re - a.re});
      };
      Complex u[kP];
      if (own) {
        each<kP>([&](auto b) { u[b] = ptx::load_shared8(b < kSelf ? s0 + b * kS : s1 + (b - kSelf) * kS); });
        dft<kP, -1>(u);
        each<kSelf>([&](auto k) { untangle(u[k], u[(kP - k) % kP], k); });
      } else {
        Complex v[kP];
        each<kP>([&](auto b) { u[b] = ptx::load_shared8(s0 + column_of(b) * kS); });
        dft<kP, -1>(u);
        each<kP>([&](auto b) { v[b] = ptx::load_shared8(s1 + column_of(b) * kS); });
        dft<kP, -1>(v);
        each<kP>([&](auto k) { untangle(u[k], v[(kP - k) % kP], column_of(k)); });
      }
    });
  }

  // Columns, first and last part: transforms of size Q. Rows outside the window are zero, or not wanted.
  template <int kSign>
  __device__ __forceinline__ void columns(const uint32_t* rows) const {
#pragma unroll 1
    for (int item = threadIdx.x; item < kColumns * kP; item += kThreads) {
      const int b = item / kColumns, c = item - b * kColumns;
      Complex* column = s + c * kS + b * kB;
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

  // A thread's numbers of a spectrum between two steps of its block; in memory the thread reads what it has written.
  struct Kept {
    Complex v[kMemory ? 1 : kRounds][kMemory ? 1 : kP];
    Complex* memory;

    __device__ __forceinline__ explicit Kept(void* spectra) {
      const int64_t block = static_cast<int64_t>(blockIdx.x) * (kRounds * kP * kThreads);
      memory = static_cast<Complex*>(spectra) + block + threadIdx.x;
    }
    __device__ __forceinline__ Complex get(int round, int k) const {
      if constexpr (kMemory) return memory[(round * kP + k) * kThreads];
      else return v[round][k];
    }
    __device__ __forceinline__ void put(int round, int k, Complex c) {
      if constexpr (kMemory) memory[(round * kP + k) * kThreads] = c;
      else v[round][k] = c;
    }
  };

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
    each<kP>([&](auto k) { v[k] = ptx::load_shared8(from + k * kB); });
    dft<kP, -1>(v);
  }
  __device__ __forceinline__ static void inverse(Complex* to, Complex (&v)[kP]) {
    dft<kP, 1>(v);
    each<kP>([&](auto k) { ptx::store_shared8(to + k * kB, v[k]); });
  }

  __device__ __forceinline__ void rows_inverse_first(const FftWindow& w) const {
    items(w, kClasses, [&](int p, int q) {
      const bool own = self(q);
      Complex *from = s + first_column(q) * kS, *s0 = from + place(2, p), *s1 = from + place(2, p + w.pairs);
      Complex u[kP], v[kP];
      const auto tangle = [&](int k, int column) {
        const Complex a = ptx::load_shared8(s0 + column * kS), b = ptx::load_shared8(s1 + column * kS);
        u[k] = {a.re - b.im, a.im + b.re};
        v[(kP - k) % kP] = {a.re + b.im, b.re - a.im};
      };
      if (own) {
        each<kSelf>([&](auto k) { tangle(k, k); });
        each<kP - kSelf>([&](auto k) { u[kSelf + k] = v[kSelf + k]; });
        dft<kP, 1>(u);
        each<kP>([&](auto b) { ptx::store_shared8(b < kSelf ? s0 + b * kS : s1 + (b - kSelf) * kS, u[b]); });
      } else {
        each<kP>([&](auto k) { tangle(k, column_of(k)); });
        dft<kP, 1>(u);
        each<kP>([&](auto b) { ptx::store_shared8(s0 + column_of(b) * kS, u[b]); });
        dft<kP, 1>(v);
        each<kP>([&](auto b) { ptx::store_shared8(s1 + column_of(b) * kS, v[b]); });
      }
    });
  }

  __device__ __forceinline__ void rows_inverse_second(const FftWindow& w) const {
    items(w, kP, [&](int p, int b) {
      const Places at(s, place(2, p), place(2, p + w.pairs), b);
      Complex v[kQ];
      each<kQ>([&](auto q) { v[q] = ptx::load_shared8(at(q)); });
      dft<kQ, 1>(v);
      each<kQ>([&](auto q) { ptx::store_shared8(at(q), v[q]); });
    });
  }

  // Stores what is wanted of a window: rows x columns of it from element `out` on. Lanes follow each other in a row.
  template <FftDType kType, class Use>
  __device__ __forceinline__ void store(const FftWindow& w, void* to, int64_t out, int rows, int columns,
                                        const Use& use) const {
    constexpr int kChunks = (L + 31) / 32;
    const int lane = threadIdx.x & 31;
    int column[kChunks];
    each<kChunks>([&](auto c) { column[c] = c * 32 + lane < columns ? t->to_x[c * 32 + lane] : 0; });
    out += lane * w.column;
#pragma unroll 1
    for (int p = threadIdx.x >> 5; p < w.pairs; p += kThreads / 32) {
      const uint32_t first = t->y[2][p], second = t->y[2][p + w.pairs];
      const int row0 = static_cast<int>(first & 0xffff), row1 = static_cast<int>(second & 0xffff);
      const int64_t to0 = out + row0 * w.row, to1 = out + row1 * w.row;
      each<kChunks>([&](auto c) {
        if (c * 32 + lane < columns) {
          const uint32_t row = (column[c] < kHalf ? first : second) >> 16;
          const Complex v = ptx::load_shared8(s + (column[c] & (kHalf - 1)) * kS + row);
          if (row0 < rows) fft_write<kType>(to, to0 + c * 32 * w.column, use(v.re));
          if (row1 < rows) fft_write<kType>(to, to1 + c * 32 * w.column, use(v.im));
        }
      });
    }
  }
};

}  // namespace replknet_ext::cuda
