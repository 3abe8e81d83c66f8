// Depthwise convolution by FFT in shared memory, in float32: one block one channel, looping over (image, tile) pairs.
// Tensors are float32, float16 or bfloat16 (FftArgs::dtype).
//
// The circular length L = Q P is the same for rows and columns, a product of coprime factors (Good and Thomas): place n
// stands at (n mod Q, n mod P), a transform is one of size Q over the first residue and one of size P over the second,
// without twiddles. Every thread computes whole transforms of size Q or P in registers, in place in shared memory: all
// offsets of an item are known when compiling.
//
// Two rows of one window are the real and imaginary part of one complex row (FftWindow::order says which); no image
// ever meets another one. A window's rows come as they are into `raw`, by asynchronous copies that run while the image
// before is computed. Everything else happens in place in the half spectrum S, [column][place] complex. Complex place
// (q, b) of a row pair stands in the column that (q, b) untangles to, at the pair's first row for the classes 0 ...
// Q / 2 of the first residue, at its second row for the others: so the transform of size P of the classes q and -q,
// done together since they untangle to the half spectrum, reads what it writes. Columns are transformed, multiplied by
// the filter's spectrum and transformed back; then the rows. That spectrum (in bwd_weight: an image's gradient's) stays
// in registers, or where those would keep a second block from an SM in device memory (Kept).
//
// bwd_weight: the spectra X conj(G) are summed in registers over the block's images in order, then one inverse.
// Non-finite values fill their tile of their plane, no other.
#pragma once
#include "../activation.cuh"
#include "transform.cuh"

namespace replknet_ext::cuda {

template <int kQ, int kP, int kA, int kB, int kS, int kThreads, int kBlocks, bool kMemory>
__global__ void __launch_bounds__(kThreads, kBlocks) fft_fwd_kernel(const __grid_constant__ FftArgs a) {
  using Transform = Fft<kQ, kP, kA, kB, kS, kThreads, kMemory>;
  DYN_SMEM(smem);
  auto* tables = reinterpret_cast<typename Transform::Tables*>(smem);
  Transform f;
  f.t = tables;
  f.s = reinterpret_cast<Complex*>(smem + fft_tables_bytes(kQ, kP));
  f.raw = reinterpret_cast<unsigned char*>(f.s + Transform::kColumns * kS);
  Transform::build(tables, a);
  __syncthreads();
#pragma unroll 1
  for (unsigned job = blockIdx.x; job < a.jobs; job = kMemory ? job + gridDim.x : a.jobs) {
    const int channel = static_cast<int>(job / a.splits);
    const int64_t first = static_cast<int64_t>(job - static_cast<unsigned>(channel) * a.splits) * a.split_items;
    const int count = static_cast<int>(min(a.split_items, a.items - first));
    FftItem now(a, first);
    float bias = 0.f;
    fft_by_dtype(a.dtype, [&](auto type) {
      constexpr FftDType kType = type;
      if (a.bias) bias = fft_read<kType>(static_cast<const unsigned char*>(a.bias) + channel * fft_bytes(kType));
    });

    f.load(a, 0, channel, FftItem(a, 0));
    typename Transform::Kept filter(a.spectra);  // conjugate and scaled
#pragma unroll 1
    for (int step = -1; step < count; ++step) {  // the filter is the item before the first
      const int which = step < 0 ? 0 : 1;
      const FftWindow& w = a.from[which];
      ptx::cp_async_wait<0>();
      __syncthreads();
      f.rows_first(w, which, a.dtype, step < 0 ? 0 : Transform::skew(w, now));
      __syncthreads();
      if (step + 1 < count) {
        FftItem next = now;
        if (step >= 0) next.advance(a);
        f.load(a, 1, channel, next);
      }
      f.rows_second(w, which);
      __syncthreads();
      f.template columns<-1>(tables->in_y[which]);
      __syncthreads();
      if (which == 0) {
        f.middle([&](auto round, Complex* at) {
          Complex v[kP];
          Transform::forward(at, v);
          each<kP>([&](auto k) { filter.put(round, k, {a.scale * v[k].re, -a.scale * v[k].im}); });
        });
        continue;
      }
      f.middle([&](auto round, Complex* at) {
        Complex v[kP];
        Transform::forward(at, v);
        each<kP>([&](auto k) { v[k] = times(v[k], filter.get(round, k)); });
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
      const int64_t out = now.image * a.to.image + channel * a.to.channel + top * a.to.row + left * a.to.column;
      fft_by_dtype(a.dtype, [&](auto type) {
        const int rows = min(a.to.rows, a.to.height - top), columns = min(a.to.columns, a.to.width - left);
        f.template store<type>(a.to, a.out, out, rows, columns,
                               [&](float v) { return activate(v + bias, a.activation); });
      });
      now.advance(a);
    }
  }
}

template <int kQ, int kP, int kA, int kB, int kS, int kThreads, int kBlocks, bool kMemory>
__global__ void __launch_bounds__(kThreads, kBlocks) fft_weight_kernel(const __grid_constant__ FftArgs a) {
  using Transform = Fft<kQ, kP, kA, kB, kS, kThreads, kMemory>;
  DYN_SMEM(smem);
  auto* tables = reinterpret_cast<typename Transform::Tables*>(smem);
  Transform f;
  f.t = tables;
  f.s = reinterpret_cast<Complex*>(smem + fft_tables_bytes(kQ, kP));
  f.raw = reinterpret_cast<unsigned char*>(f.s + Transform::kColumns * kS);
  const int channel = static_cast<int>(blockIdx.x / a.splits);
  const int split = static_cast<int>(blockIdx.x) - channel * a.splits;
  const int64_t first = split * a.split_items;
  const int count = static_cast<int>(min(a.split_items, a.items - first));
  FftItem item(a, first);

  Transform::build(tables, a);
  __syncthreads();
  if (count > 0) f.load(a, 0, channel, item);
  Complex sum[Transform::kRounds][kP];
  typename Transform::Kept gradient(a.spectra);
  each<Transform::kRounds>([&](auto round) { each<kP>([&](auto k) { sum[round][k] = {0.f, 0.f}; }); });
  float total = 0.f;  // thread 0: twice the sum of the gradient, its spectrum at 0
#pragma unroll 1
  for (int step = 0; step < 2 * count; ++step) {
    const int which = step & 1;
    const FftWindow& w = a.from[which];
    ptx::cp_async_wait<0>();
    __syncthreads();
    f.rows_first(w, which, a.dtype, Transform::skew(w, item));
    __syncthreads();
    if (which) item.advance(a);
    if (step + 1 < 2 * count) f.load(a, which ^ 1, channel, item);
    f.rows_second(w, which);
    __syncthreads();
    f.template columns<-1>(tables->in_y[which]);
    __syncthreads();
    if (which == 0) {
      f.middle([&](auto round, Complex* at) {
        Complex v[kP];
        Transform::forward(at, v);
        each<kP>([&](auto k) { gradient.put(round, k, v[k]); });
        if (round == 0) total += v[0].re;
      });
    } else {
      f.middle([&](auto round, Complex* at) {
        Complex v[kP];
        Transform::forward(at, v);
        each<kP>([&](auto k) {
          const Complex g = gradient.get(round, k);
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
  const int64_t out = split * a.out_split + channel * a.to.channel;
  fft_by_dtype(a.out_dtype, [&](auto type) {
    f.template store<type>(a.to, a.out, out + a.to.origin_y * a.to.row + a.to.origin_x, a.to.rows, a.to.columns,
                           [](float v) { return v; });
    // taps that no output meets
    for (int64_t i = threadIdx.x; i < a.to.channel; i += kThreads) {
      const int row = static_cast<int>(i / a.to.row) - a.to.origin_y;
      const int column = static_cast<int>(i % a.to.row) - a.to.origin_x;
      if (row < 0 || row >= a.to.rows || column < 0 || column >= a.to.columns) fft_write<type>(a.out, out + i, 0.f);
    }
    if (a.grad_bias && threadIdx.x == 0)
      fft_write<type>(a.grad_bias, split * static_cast<int64_t>(a.channels) + channel, 0.5f * total);
  });
}

}  // namespace replknet_ext::cuda
