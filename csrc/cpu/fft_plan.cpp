#include "fft_plan.h"

#include <algorithm>

#include "../integers.h"
#include "model.h"

namespace replknet_ext::cpu {
namespace {

// Whether a transform of this length computes every tile. Inputs do not wrap; wrong sums wrap to slots beyond the tile.
bool fits(const FftAxis& axis, int64_t length) {
  if (axis.taps > length || axis.tile > length) return false;
  const int64_t window = axis.tile + axis.taps - 1;
  if (window <= length) return true;
  // From the first tile that meets the input on: one that does and starts within it has too long a window.
  const int64_t before = axis.pad - axis.tap - window;
  for (int64_t i = before < 0 ? 0 : before / axis.tile; i < ceil_div(axis.out, axis.tile); i++) {
    const FftTile t(axis, i);
    if (t.in_begin == axis.in) break;
    if (t.ins > 0 && (t.slot + t.ins > length || t.outs + axis.taps - 1 - t.slot > length)) return false;
  }
  return true;
}

// The outputs of a tile for as few tiles of equal size as fit, or 0.
int64_t tile_for(int64_t in, int64_t out, int64_t k, int64_t pad, int64_t length) {
  if (fits(FftAxis(in, out, k, pad, out), length)) return out;
  const int64_t most = length - FftAxis(in, out, k, pad, out).taps + 1;
  if (most < 1) return 0;
  const int64_t tile = ceil_div(out, ceil_div(out, most));
  return fits(FftAxis(in, out, k, pad, tile), length) ? tile : 0;
}

// Vector operations of a DFT of n points, as fft_codelets.inc computes it.
double codelet(int n) {
  switch (n) {
    case 2: return 4;
    case 3: return 12;
    case 4: return 16;
    case 5: return 36;
    case 6: return 2 * 12 + 3 * 4;
    case 7: return 66;
    case 8: return 52;
    case 9: return 88;
    case 10: return 2 * 36 + 5 * 4;
    case 12: return 4 * 12 + 3 * 16;
    case 15: return 3 * 36 + 5 * 12;
    default: return 8 * 16 + 9 * 4;
  }
}
double transform(const FftLength& l) { return l.p * codelet(l.q) + l.q * codelet(l.p); }
int64_t columns(const FftLength& l) { return l.length() / 2 + 1; }

struct Side {
  int length;
  int64_t tile, tiles;
};

// Microseconds of a whole pass on one thread.
double cost_of(const Problem& p, int lanes, const Side& y, const Side& x) {
  const FftLength &ly = kFftLengths[y.length], &lx = kFftLengths[x.length];
  const bool weight = p.pass == Pass::bwd_weight;
  const double row = (transform(lx) + 8.0 * columns(lx)) / 2, column = transform(ly);  // of one
  const double height = std::min(p.h, y.tile + p.kh - 1), width = std::min(p.w, x.tile + p.kw - 1);
  const double filter = p.kh * row + p.kh * p.kw + columns(lx) * column;
  const double operations = (height + y.tile) * row + columns(lx) * (2 * column + 4 * ly.length());
  const double numbers = 8e-6 * lanes;  // megabytes of a complex vector
  const double planes = columns(lx) * std::max<double>(height, y.tile) * numbers * (weight ? 2 : 1);
  const double spectrum = columns(lx) * ly.length() * numbers;
  const double tile = fft_tile(operations, height * width + y.tile * x.tile, planes + spectrum, weight ? spectrum : 0);
  return (double(p.n * y.tiles * x.tiles) * tile + kFftOperation * filter + kFftStart) * double(ceil_div(p.c, lanes));
}

}  // namespace

FftAxis::FftAxis(int64_t in, int64_t out, int64_t k, int64_t pad, int64_t tile) : in(in), out(out), pad(pad), tile(tile) {
  tap = std::min(std::max<int64_t>(0, pad - (out - 1)), k - 1);
  taps = std::max(tap, std::min(k - 1, in - 1 + pad)) - tap + 1;
}

FftTile::FftTile(const FftAxis& axis, int64_t index) {
  out_begin = index * axis.tile;
  outs = std::min(axis.tile, axis.out - out_begin);
  const int64_t base = out_begin - axis.pad + axis.tap;  // the input in slot 0
  in_begin = std::min(std::max<int64_t>(0, base), axis.in);
  ins = std::max<int64_t>(0, std::min(axis.in, base + outs + axis.taps - 1) - in_begin);
  slot = ins > 0 ? in_begin - base : 0;
}

const char* plan_fft(const Problem& p, int lanes, Plan* plan) {
  if (p.dtype == DType::f64) return "float64 is computed directly, not by FFT";
  Side best_y{}, best_x{};
  double best = 0;
  Problem typical = p;  // lengths decide the bits, so they must not depend on the batch
  typical.n = kTypicalBatch;
  for (int j = 0; j < kFftLengthCount; j++) {
    const int64_t tile_y = tile_for(p.h, p.ho, p.kh, p.pad_top, kFftLengths[j].length());
    if (tile_y == 0) continue;
    const Side y{j, tile_y, ceil_div(p.ho, tile_y)};
    for (int i = 0; i < kFftLengthCount; i++) {
      const int64_t tile_x = tile_for(p.w, p.wo, p.kw, p.pad_left, kFftLengths[i].length());
      if (tile_x == 0) continue;
      const Side x{i, tile_x, ceil_div(p.wo, tile_x)};
      const double cost = cost_of(typical, lanes, y, x);
      if (best == 0 || cost < best) best = cost, best_y = y, best_x = x;
    }
  }
  if (best == 0) return "the filter is longer than the FFTs";
  *plan = Plan{};
  plan->cost = cost_of(p, lanes, best_y, best_x);
  plan->length_y = best_y.length, plan->length_x = best_x.length;
  plan->tile_y = best_y.tile, plan->tile_x = best_x.tile;
  return nullptr;
}

}  // namespace replknet_ext::cpu
