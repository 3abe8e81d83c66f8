// The time model that every kernel's planner uses, so that their costs compare: microseconds on one thread of a processor
// with two vector operations a cycle at 3 GHz. Used to choose between kernels, never to promise a time. The constants
// were fitted to one thread of an Intel server core (AVX-512, 2 MB of L2) on 16 maps from 7 to 112 pixels, K 3 to 31.
#pragma once
#include <algorithm>
#include <cstdint>

#include "../problem.h"

namespace replknet_ext::cpu {

constexpr int64_t kTypicalBatch = 8;  // the batch at which what decides an image's bits is compared

constexpr double kFmaPerMicrosecond = 6000;  // vector multiply-adds

// What a channel block of one image costs beside its arithmetic: packing of both planes, and starting.
constexpr double kPixel = 0.0032, kWeightPixel = 0.0055, kStart = 0.8;
inline double direct_overhead(const Problem& p, int lanes) {
  const double pixel = p.pass == Pass::bwd_weight ? kWeightPixel : kPixel;
  const double blocks = double(p.n) * double((p.c + lanes - 1) / lanes);
  return blocks * (kStart + pixel * double(p.h * p.w + p.ho * p.wo));
}

// direct_plane: a plane costs its start, each pass over it and its pixels; vectors of 16-bit results cost more.
constexpr double kPlaneStart = 0.02, kPlanePass = 0.03, kPlaneWeightPass = 0.09, kPlanePixel = 0.00015, kPlaneHalf = 0.0015;

// An FFT of a tile: vector operations come with loads and stores; half spectra pass through the caches.
constexpr double kFftOperation = 1.3 / kFmaPerMicrosecond, kFftStart = 2;
constexpr double kFftSum = 40;                      // bwd_weight: a megabyte of summed spectra
constexpr double kFftNear = 0.4, kFftFar = 60;      // megabytes that stay near the core; a megabyte beyond them
inline double fft_tile(double operations, double pixels, double megabytes, double summed) {
  return kFftStart + kFftOperation * operations + kPixel * pixels + kFftSum * summed +
         kFftFar * std::max(0.0, megabytes - kFftNear);
}

}  // namespace replknet_ext::cpu
