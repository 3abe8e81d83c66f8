#include "plan.h"

#include <algorithm>

#include "../../integers.h"
#include "../family.h"
#include "variants.h"
#include "../model.h"

namespace replknet_ext::cuda {
namespace {

// Predictions beside those of model.h, used only to compare candidates.
constexpr double kBlockCycles = 2000;   // tables and the first load of a block
constexpr double kOverhead = 2.4;       // instructions beside the arithmetic for every number loaded or stored (SASS)
constexpr double kCopyOverhead = 6;     // instructions for every element of a plane that is copied in or out (SASS)
// Share of the fullest of the pipes that a number of blocks on an SM fills: one alone waits at its barriers.
double filled(int64_t blocks, int warps) { return std::min(blocks == 1 ? 0.65 : 0.8, 0.045 * blocks * warps); }

int even(int v) { return (v + 1) / 2 * 2; }

// Arithmetic instructions of fft/codelets.cuh's transforms (an FMA is one)
int arithmetic(int n) {
  switch (n) {
    case 2: return 4;
    case 4: return 16;
    case 6: return 40;
    case 8: return 54;
    case 9: return 88;
    case 10: return 92;
    case 12: return 104;
    case 16: return 160;
    default: return (n - 1) * (n - 1) + 5 * (n - 1);  // odd primes
  }
}

// One axis of the windows. Lag of a tap: input place minus output place.
struct Axis {
  int in, in_origin, out, step, tiles;  // input and output window, tiles along the axis
  int taps, tap0;                       // taps that an output meets, and the first of them
  int tap_slot;
};

// False if tiles of `length` can't cover the axis in `tiles` parts.
bool fit_axis(int64_t in, int64_t out, int64_t k, int64_t pad, int length, int64_t tiles, Axis* a) {
  const int64_t low = std::max(-pad, -(out - 1)), high = std::min(k - 1 - pad, in - 1);
  const bool none = low > high;  // no tap meets the input: one that lies outside the filter, which is zero
  const int64_t taps = none ? 1 : high - low + 1, tap0 = none ? -1 : low + pad;
  if (tiles == 1) {
    const int64_t reach = none ? 1 : std::max(high + out, in - low);
    if (std::max({reach, in + in % 2, out + out % 2, taps + taps % 2}) > length) return false;
    *a = {static_cast<int>(in), 0, static_cast<int>(out), 0, 1, static_cast<int>(taps), static_cast<int>(tap0),
          static_cast<int>(none ? 0 : (low + length) % length)};
    return true;
  }
  const int64_t step = ceil_div(out, tiles);
  if (none || even(static_cast<int>(std::min<int64_t>(step + taps - 1, 4096))) > length) return false;
  *a = {static_cast<int>(step + taps - 1), static_cast<int>(low), static_cast<int>(step), static_cast<int>(step),
        static_cast<int>(ceil_div(out, step)), static_cast<int>(taps), static_cast<int>(tap0), 0};
  return true;
}

const char* refuse(const Problem& p) {
  if (p.algorithm == Algorithm::direct) return "computes by FFT, not directly";
  if (p.dtype == DType::f64) return "the FFT kernels compute in float32, not in float64";
  return nullptr;
}

class Candidate {
 public:
  Candidate(const Problem& p, const DeviceLimits& limits, const FftVariant& v, const Axis& y, const Axis& x)
      : p_(p), limits_(limits), v_(v), y_(y), x_(x), weight_(p.pass == Pass::bwd_weight) {
    pairs_[0] = ceil_div(weight_ ? y.out : y.taps, 2);  // of the first source
    pairs_[1] = ceil_div(y.in, 2);
    out_pairs_ = ceil_div(weight_ ? y.taps : y.out, 2);
    columns_ = fft_columns(v.q, v.p);
    element_ = p.dtype == DType::f32 ? 4 : 2;
    const int64_t raw = 2 * std::max(pairs_[0] * pitch(weight_ ? x.out : x.taps), pairs_[1] * pitch(x.in));
    shared_ = fft_tables_bytes(v.q, v.p) + columns_ * v.s * 8 + static_cast<int>(raw);
    items_ = p.n * y.tiles * static_cast<int64_t>(x.tiles);
    warps_ = v.threads / 32;
    resident_ = resident_blocks(limits, warps_, shared_, v.blocks * warps_);
    count_work();
  }

  bool runs() const { return shared_ <= limits_.shared_per_block && p_.c <= 0x7fffffff; }

  // Cycles of an SM that the issue slots, shared memory and global memory need for one window, up to the spectrum and
  // from it; the largest counts.
  double forward(int64_t pairs, double elements) const {
    return cycles(pairs * rows_arithmetic() + columns_ * columns_arithmetic(),
                  pairs * (4.0 * v_.q * v_.p + 2 * columns_) + columns_ * 3.0 * v_.q * v_.p, elements);
  }
  double inverse(int64_t pairs, double elements) const {
    return cycles(pairs * rows_arithmetic() + columns_ * (columns_arithmetic() + 6.0 * v_.q * v_.p),
                  pairs * (4.0 * v_.q * v_.p + 2 * columns_) + columns_ * 3.0 * v_.q * v_.p, elements);
  }

  double predict(int64_t splits) const {
    const double block = once_ + ceil_div(items_, splits) * each_;
    const double all = sm_cycles(Waves(p_.c * splits, resident_, limits_.sms), {0, kBlockCycles, 0, kBlockCycles},
                                 [&](int n) { return n * block / filled(n, warps_); });
    return all + (splits > 1 && weight_ ? second_launch_cycles(limits_, partial_bytes(splits)) : 0);
  }

  // The number of splits that is predicted to be the fastest, and its cycles.
  double choose_splits(int64_t* best) const {
    int64_t splits = std::max<int64_t>(1, ceil_div(items_, 1 << 30));  // a block counts its items in 32 bits
    double least = predict(splits);
    for (int64_t s = splits + 1; s <= std::min<int64_t>(items_, 512); s += std::max<int64_t>(1, s / 8))
      if (p_.c * s <= 0x7fffffff)
        if (const double cycles = predict(s); cycles < least) splits = s, least = cycles;
    const int64_t per_split = std::max<int64_t>(1, ceil_div(items_, splits));
    *best = std::max<int64_t>(1, ceil_div(items_, per_split));
    return *best == splits ? least : predict(*best);
  }

  // What a block computes once, and for each of its items.
  void count_work() {
    const double in = static_cast<double>(y_.in) * x_.in, out = static_cast<double>(y_.out) * x_.out;
    const double taps = static_cast<double>(y_.taps) * x_.taps;
    const double once = weight_ ? inverse(out_pairs_, taps) : forward(pairs_[0], taps);
    const double pipes = weight_ ? forward(pairs_[0], out) + forward(pairs_[1], in)
                                 : forward(pairs_[1], in) + inverse(out_pairs_, out);
    // a spectrum in memory is read for every item, a gradient's is also written
    const double kept = v_.memory ? (weight_ ? 16 : 8) * fft_spectrum(v_.q, v_.p, v_.threads) / kL2Bytes : 0;
    once_ = once, each_ = std::max(pipes, kept);
  }

  void fill(int64_t splits, double predicted, FftPlan* out) const {
    const int64_t per_split = std::max<int64_t>(1, ceil_div(items_, splits));
    out->args = {};
    FftArgs& a = out->args;
    a.items = items_, a.split_items = per_split, a.splits = static_cast<int>(splits);
    a.channels = static_cast<int>(p_.c), a.tiles_y = y_.tiles, a.tiles_x = x_.tiles;
    a.activation = static_cast<int>(p_.activation);
    a.dtype = p_.dtype == DType::f32 ? FftDType::f32 : p_.dtype == DType::f16 ? FftDType::f16 : FftDType::bf16;
    a.out_dtype = a.dtype;
    const int length = v_.q * v_.p;
    a.scale = static_cast<float>(0.25 / (static_cast<double>(length) * length));
    // taps of the filter as a plane; a flipped one from its end
    const int64_t sign = p_.flip ? -1 : 1;
    const FftWindow filter{0, p_.kh * p_.kw, sign * p_.kw, sign, static_cast<int>(p_.kh), static_cast<int>(p_.kw),
                           y_.taps, x_.taps, y_.tap0, x_.tap0, 0, 0, y_.tap_slot, x_.tap_slot, 0, 1};
    FftWindow input = plane(p_.h, p_.w), output = plane(p_.ho, p_.wo);
    input.rows = y_.in, input.columns = x_.in, input.origin_y = y_.in_origin, input.origin_x = x_.in_origin;
    output.rows = y_.out, output.columns = x_.out;
    a.from[0] = weight_ ? output : filter, a.from[1] = input, a.to = weight_ ? filter : output;
    if (weight_ && (a.to.origin_y < 0 || a.to.origin_x < 0)) a.to.rows = a.to.columns = 0;
    for (FftWindow* w : {&a.from[0], &a.from[1], &a.to}) pair_rows(w), w->pitch = pitch(w->columns);

    int64_t workspace = weight_ && splits > 1 ? (partial_bytes(splits) + 7) / 8 * 8 : 0;
    const int64_t jobs = p_.c * splits;
    // blocks that keep a spectrum in memory are as many as run at once
    const int64_t blocks = v_.memory && !weight_ ? std::min<int64_t>(jobs, int64_t{limits_.sms} * resident_) : jobs;
    if (v_.memory) a.spectra_offset = workspace, workspace += blocks * fft_spectrum(v_.q, v_.p, v_.threads) * 8;
    a.jobs = static_cast<unsigned>(jobs);
    out->warps = warps_, out->shared_bytes = shared_, out->blocks_per_sm = resident_, out->blocks = blocks;
    out->cycles = predicted, out->workspace_bytes = workspace;
    out->spill_rows = out->spill_columns = -1;
    out->details = {{{"tiles", int64_t{y_.tiles} * x_.tiles}, {"split_items", per_split}}};
  }

 private:
  int64_t partial_bytes(int64_t splits) const { return splits * p_.c * (p_.kh * p_.kw + 1) * 4; }
  // Bytes of a row in shared memory: an element more for copies that start one early, an odd number of words.
  int pitch(int columns) const { return (element_ == 4 ? columns | 1 : (columns + 2) / 2 | 1) * 4; }
  double rows_arithmetic() const {
    return v_.p * arithmetic(v_.q) + (v_.q / 2 + 1) * (2.0 * arithmetic(v_.p) + 4 * v_.p);
  }
  double columns_arithmetic() const { return v_.p * arithmetic(v_.q) + v_.q * arithmetic(v_.p); }
  double cycles(double instructions, double numbers, double elements) const {
    const double issue = (instructions + kOverhead * numbers + kCopyOverhead * elements) / kFmaPerCycle;
    const double shared = (numbers + elements) * 8 * v_.waves / kSharedBytes;
    // a pixel of channels_last is a sector of its own in L2, and a cycle of the load and store unit
    const double global = p_.channels_last ? std::max(1.0, 32 / kL2Bytes) : element_ / kGlobalBytes;
    return std::max({issue, shared, global * elements * 0.8});
  }
  // Rows in layers of one a bank, 16 for the first rows of pairs, 16 for the second and so on.
  void pair_rows(FftWindow* w) const {
    w->pairs = (w->rows + 1) / 2;
    for (int unit = 16; unit >= 1; unit /= 2) {
      w->padded = static_cast<int>(ceil_div(w->pairs, unit)) * unit;
      if (4 * w->padded <= 5 * w->pairs) break;
    }
    w->magic = (1u << 20) / std::max(1, w->padded) + 1;
    int by_layer[sizeof FftWindow::order + 1], rows = 0, seen[16];
    for (int layer = 0; rows < w->rows; ++layer) {
      int in_layer[16];
      std::fill(seen, seen + 16, 0);
      std::fill(in_layer, in_layer + 16, -1);
      for (int r = 0; r < w->rows; ++r) {
        const int n = (r + w->slot_y) % (v_.q * v_.p), bank = (n % v_.q * v_.a + n % v_.p * v_.b) % 16;
        if (seen[bank]++ == layer) in_layer[bank] = r;
      }
      for (int r : in_layer)
        if (r >= 0) by_layer[rows++] = r;
    }
    if (rows < 2 * w->pairs) by_layer[rows++] = w->rows;
    for (int p = 0, i = 0; p < w->pairs; p += 32) {
      const int group = std::min(32, w->pairs - p);
      for (int half = 0; half < 2; ++half)
        for (int k = 0; k < group; ++k) w->order[half * w->pairs + p + k] = static_cast<uint8_t>(by_layer[i++]);
    }
  }
  FftWindow plane(int64_t height, int64_t width) const {
    FftWindow w{};
    w.height = static_cast<int>(height), w.width = static_cast<int>(width);
    w.image = p_.c * height * width, w.channel = p_.channels_last ? 1 : height * width;
    w.row = p_.channels_last ? width * p_.c : width, w.column = p_.channels_last ? p_.c : 1;
    w.step_y = y_.step, w.step_x = x_.step, w.unit = 1;
    return w;
  }

  const Problem& p_;
  const DeviceLimits& limits_;
  const FftVariant& v_;
  Axis y_, x_;
  bool weight_;
  int64_t pairs_[2], out_pairs_, items_;
  int columns_, element_, shared_, resident_, warps_;
  double once_ = 0, each_ = 0;
};

// As few tiles as fit, down and along.
bool plan_variant(const Problem& p, const DeviceLimits& limits, const FftVariant& v, FftPlan* best) {
  const int length = v.q * v.p;
  const auto fewest = [&](int64_t in, int64_t out, int64_t k, int64_t pad, int64_t from, Axis* a) {
    if (fit_axis(in, out, k, pad, length, from, a)) return from;
    const int64_t taps = std::min(k - 1 - pad, in - 1) - std::max(-pad, -(out - 1)) + 1;
    if (taps > length - 1) return int64_t{0};
    const int64_t tiles = std::max<int64_t>({2, from, ceil_div(out, length / 2 * 2 - taps + 1)});
    return tiles <= out && fit_axis(in, out, k, pad, length, tiles, a) ? tiles : int64_t{0};
  };
  Axis y, x;
  if (!fewest(p.w, p.wo, p.kw, p.pad_left, 1, &x)) return false;
  int64_t tiles = fewest(p.h, p.ho, p.kh, p.pad_top, 1, &y);
  const auto more = [&] {  // the next number of tiles with fewer outputs in each
    const int64_t next = y.step > 1 ? std::max(tiles + 1, ceil_div(p.ho, int64_t{y.step} - 1)) : tiles + 1;
    return next <= p.ho ? fewest(p.h, p.ho, p.kh, p.pad_top, next, &y) : 0;
  };
  for (; tiles; tiles = more()) {
    const Candidate candidate(p, limits, v, y, x);
    if (candidate.runs()) {
      int64_t splits;
      const double cycles = candidate.choose_splits(&splits);
      if (cycles < best->cycles) candidate.fill(splits, cycles, best);
      return true;
    }
    if (tiles > 4 * ceil_div(p.ho, length)) break;  // more tiles no longer make windows smaller
  }
  return false;
}

const FftVariant& variant_of(Pass pass, int variant) { return (pass == Pass::fwd ? kFftFwd : kFftWeight)[variant]; }

class Planner {
 public:
  using Plan = FftPlan;

  Planner(const Problem& p, const DeviceLimits& limits) : p_(p), limits_(limits) {}

  static int count(Pass pass) { return pass == Pass::fwd ? kFftFwdCount : kFftWeightCount; }
  static const char* name(Pass pass, int variant) { return variant_of(pass, variant).name; }
  const char* refuse() const { return cuda::refuse(p_); }
  const char* refuse(int) const { return nullptr; }
  bool plan(int variant, FftPlan* best) const { return plan_variant(p_, limits_, variant_of(p_.pass, variant), best); }
  const char* none(int variant) const {
    return variant < 0 ? "the filter is longer than the transforms, or they need more shared memory than a block has"
                       : "the filter is longer than the transform, or it needs more shared memory than a block has";
  }

 private:
  const Problem& p_;
  const DeviceLimits& limits_;
};

}  // namespace

const Family fft_family = family_of<Planner>("fft");

}  // namespace replknet_ext::cuda
