// What the FFT kernels of every instruction set share: the lengths, how an axis is cut into tiles, and the choice.
#pragma once
#include "backend.h"

namespace replknet_ext::cpu {

struct FftLength {
  int q, p;  // coprime factors: q points where the data lies, p points within the transform
  constexpr int length() const { return q * p; }
};
constexpr FftLength kFftLengths[] = {{2, 7},  {2, 9},  {4, 5},  {8, 3},  {4, 7},  {6, 5},  {4, 9},
                                     {8, 5},  {6, 7},  {9, 5},  {16, 3}, {8, 7},  {12, 5}, {9, 7},
                                     {8, 9},  {16, 5}, {10, 9}, {15, 7}, {16, 7}, {15, 8}, {16, 9}};
constexpr int kFftLengthCount = sizeof kFftLengths / sizeof *kFftLengths;
constexpr int kFftLongest = 144;

// One axis of a problem: which taps meet the input at all, and how many outputs a tile computes (all but the last).
struct FftAxis {
  int64_t in, out, pad;
  int64_t tap, taps;  // taps tap .. tap + taps - 1
  int64_t tile;
  FftAxis(int64_t in, int64_t out, int64_t k, int64_t pad, int64_t tile);
};

// A tile of an axis. Output o stands in slot o - out_begin, input r in slot r - out_begin + pad - tap, tap i in slot
// i - tap; modulo the length no pair of an input and a tap but the right ones meets a slot of a wanted output.
struct FftTile {
  int64_t out_begin, outs;
  int64_t in_begin, ins;  // the inputs that it needs; none where it sees only padding
  int64_t slot;           // of in_begin
  FftTile(const FftAxis& axis, int64_t index);
};

// Null and the plan of least cost, or the reason why not. lanes: float32 numbers in a vector.
const char* plan_fft(const Problem& p, int lanes, Plan* plan);

}  // namespace replknet_ext::cpu
