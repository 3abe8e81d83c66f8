#include "plan.h"

#include "../family.h"
#include "../model.h"
#include "geometry.h"
#include "sizes.h"
#include "variants.h"

namespace replknet_ext::cuda {
namespace {

// A further channel of a staged block: its filter and three barriers.
constexpr double kChannelCycles = 800;

struct Tile {
  int pairs, chunks, groups, part_rows;
  int channels = 1, turns = 1;  // of staged kernels
  bool load_once = false;       // the input serves every part of the filter
};

class Candidate {
 public:
  Candidate(const Problem& p, const DeviceLimits& limits, const ToeplitzFwdVariant& v, const Rows& r, const Columns& c,
            Tile t)
      : p_(p),
        limits_(limits),
        v_(v),
        r_(r),
        c_(c),
        t_(t),
        staged_(v.kind != ToeplitzFwdKind::plain),
        is_float_(v.kind == ToeplitzFwdKind::tf32 || v.kind == ToeplitzFwdKind::bf16x3) {
    columns_ = v.whole ? 1 : ceil_div(t.chunks, v.chunks);
    in_chunks_ = v.whole ? v.chunks : columns_ * v.chunks + v.offsets - 1;
    parts_down_ = ceil_div(r.table_rows, t.part_rows);
    parts_along_ = v.whole ? 1 : ceil_div(c.d_count, v.offsets);
    const int items = ceil_div(t.pairs, v.pairs) * columns_ * (t.groups / v.groups);
    rounds_ = ceil_div(items, v.warps);
    warps_ = ceil_div(items, rounds_);
    in_pairs_ = std::min(r.q_end - r.q_first, t.pairs + (t.load_once ? r.table_rows : t.part_rows) - 1);
    int64_t units = static_cast<int64_t>(in_pairs_) * in_chunks_;
    // outputs take the place of the input
    if (staged_) units = std::max<int64_t>(units, static_cast<int64_t>(t.pairs) * columns_ * v.chunks);
    plane_ = units * unit_bytes();
    const int64_t part_rows = t.part_rows;
    const int64_t filter = is_float_ ? float_filter_bytes(part_rows, v.offsets) : filter_bytes(part_rows, v.offsets, v.line);
    shared_ = table_bytes(part_rows, v.offsets) * halves() + t.channels * t.groups * plane_ +
              (staged_ ? filter : std::max<int64_t>(filter, warps_ * transpose_bytes(v.chunks)));
  }

  bool runs() const {
    const int64_t tiles = static_cast<int64_t>(ceil_div(r_.pairs, t_.pairs)) * ceil_div(c_.out, t_.chunks);
    if (p_.c * tiles > 0x7fffffff) return false;  // the grid's first axis
    if (shared_ > limits_.shared_per_block || (staged_ && rounds_ > 1)) return false;
    if (t_.load_once) return parts_along_ == 1;
    if (parts_down_ * parts_along_ == 1) return true;
    // a filter in parts keeps a warp's sums in registers: one item a warp
    return !v_.whole && rounds_ == 1;
  }

  // Products of a block's turn and the row fragments that they take, from the meetings of a slot's pairs.
  double steps() const { return static_cast<double>(r_.steps) / pair_tiles() * t_.channels; }
  double mmas() const {
    const int per_step = products_per_meeting(v_.offsets, v_.chunks, v_.whole) * columns_ * parts_along_;
    const int products = v_.kind == ToeplitzFwdKind::tf32 ? 2 : v_.kind == ToeplitzFwdKind::bf16x3 ? 3 : 1;
    return steps() * per_step * t_.groups * products;
  }

  // Less than `cycles`: the products of all blocks, spread over the device.
  double least_cycles() const {
    const double turns = static_cast<double>(blocks()) * t_.turns;
    return kStartCycles + kAlmost * turns * mmas() / 4 * kMmaCycles / kMostBusy / limits_.sms;
  }

  double cycles() const {
    const int resident = resident_of();
    const int64_t slots = p_.n << r_.split_log2, block_groups = static_cast<int64_t>(t_.groups) * t_.turns;
    const int64_t group_tiles = this->group_tiles(), blocks = this->blocks();
    const double steps = this->steps(), mmas = this->mmas();
    const double reads = steps / (v_.pairs * v_.groups) * columns_ * t_.groups * parts_along_ *
                         (v_.offsets * halves() * (v_.rotate ? 512.0 : 512.0 * v_.pairs) +
                          unit_bytes() * v_.groups * (v_.whole ? v_.chunks : v_.chunks + v_.offsets - 1));
    const double tensor = mmas / 4 * kMmaCycles, shared = reads / kSharedBytes;
    const int parts = parts_down_ * parts_along_;
    const double tiles = t_.groups * static_cast<double>(t_.channels);
    const double in_bytes = tiles * in_pairs_ * in_chunks_ * unit_bytes() * (t_.load_once ? 1 : parts);
    const double out_bytes = tiles * unit_bytes() * t_.pairs * columns_ * v_.chunks;
    // Slots without an image or a row group are not loaded. What row groups, tiles and parts of a filter load again comes
    // from L2.
    const double used = static_cast<double>(slots) / (static_cast<double>(group_tiles) * block_groups * 8);
    const auto moved = [&](double bytes, int64_t rows, int64_t columns) {
      const double unique = static_cast<double>(p_.n * p_.c * rows * columns) * (is_float_ ? 4 : 2) / static_cast<double>(blocks * t_.turns);
      return std::max(unique / kGlobalBytes, bytes * used * sector_waste() / kL2Bytes);
    };
    const double filter = kStartCycles * (t_.load_once ? 0 : parts - 1) +
                          kChannelCycles * (t_.load_once ? t_.channels * parts - 1 : 0) +
                          kTableCycles * r_.table_rows * v_.offsets * halves() * parts_along_ * t_.channels;
    const double loads = moved(in_bytes, p_.h, p_.w), stores = moved(out_bytes, p_.ho, p_.wo), load = filter + loads;
    const Waves waves(blocks, resident, limits_.sms);
    const BlockCycles block{load, kStartCycles + load, t_.turns * (loads + stores), stores / rounds_};
    double cycles = sm_cycles(waves, block, [&](int n) { return t_.turns * n * std::max(tensor / busy(n * warps_), shared); });
    // Further turns of a block need no new fragments, and their NCHW input has come to the L2 cache meanwhile.
    const double again = (in_bytes + out_bytes) * used * sector_waste() / kL2Bytes, turns = static_cast<double>(waves.rounds) * (t_.turns - 1);
    return cycles + turns * (waves.beside > 1 ? kExposed * again : p_.channels_last ? loads + stores : again);
  }

  void fill(double cycles, ToeplitzFwdPlan* out) const {
    out->args = {};
    ToeplitzFwdArgs& a = out->args;
    set_problem(p_, r_, c_, &a);
    a.block_pairs = t_.pairs, a.block_chunks = v_.whole ? c_.out : t_.chunks, a.block_groups = t_.groups;
    a.pair_tiles = pair_tiles(), a.chunk_tiles = chunk_tiles();
    a.part_rows = t_.part_rows, a.parts_down = parts_down_, a.parts_along = parts_along_;
    a.in_chunks = in_chunks_, a.plane = static_cast<int>(plane_);
    a.channels_last = p_.channels_last, a.block_channels = t_.channels, a.turns = t_.turns;
    a.load_once = t_.load_once;
    out->groups = groups();
    out->parts = parts_down_ * parts_along_, out->warps = warps_, out->shared_bytes = static_cast<int>(shared_);
    out->blocks_per_sm = resident_of(), out->blocks = blocks();
    out->mmas = mmas() * static_cast<double>(blocks()) * t_.turns, out->cycles = cycles;
    out->details = {{{"row_groups", 1 << r_.split_log2},
                     {"block_pairs", t_.pairs},
                     {"block_chunks", a.block_chunks},
                     {"block_groups", t_.groups}}};
    set_spill(r_, c_, v_.line, v_.offsets * parts_along_, v_.chunks, v_.whole, out);
  }

 private:
  int pair_tiles() const { return ceil_div(r_.pairs, t_.pairs); }
  int chunk_tiles() const { return v_.whole ? 1 : ceil_div(c_.out, t_.chunks); }
  int64_t groups() const { return slot_groups(p_, r_); }
  int64_t group_tiles() const { return ceil_div(groups(), static_cast<int64_t>(t_.groups) * t_.turns); }
  int64_t blocks() const { return ceil_div(p_.c, t_.channels) * group_tiles() * pair_tiles() * chunk_tiles(); }
  int resident_of() const {
    const int register_warps = (limits_.capability == 90 ? v_.blocks : v_.blocks_elsewhere) * v_.warps;
    return resident_blocks(limits_, warps_, shared_, register_warps);
  }
  int halves() const { return is_float_ ? 2 : 1; }
  int unit_bytes() const { return 256 * halves(); }  // of a row pair and a chunk of 8 slots
  // Bytes of the sectors of a channels_last tensor that pass for each byte wanted: an access has the largest power of 2
  // of channels, up to block_channels, that their number is a multiple of.
  double sector_waste() const {
    if (!p_.channels_last) return 1;
    const int64_t together = p_.c | t_.channels, access = (together & -together) * (is_float_ ? 4 : 2);
    return 32.0 / static_cast<double>(std::min<int64_t>(access, 16));
  }

  const Problem& p_;
  const DeviceLimits& limits_;
  const ToeplitzFwdVariant& v_;
  const Rows& r_;
  const Columns& c_;
  Tile t_;
  bool staged_, is_float_;
  int columns_, in_pairs_, in_chunks_, parts_down_, parts_along_, rounds_, warps_;
  int64_t plane_, shared_;
};

const char* refuse(const Problem& p) {
  if (p.pass != Pass::fwd) return "only fwd and bwd_input";
  if (p.algorithm == Algorithm::fft) return "computes directly, not by FFT";
  if (p.dtype == DType::f64) return "float64 does not run on tensor cores here";
  if (p.dtype == DType::f32 && p.precision == Precision::ieee)
    return "float32 runs on tensor cores only by precision tf32 or bf16x3";
  return nullptr;
}

// Null or why a variant is not for a problem's dtype, memory format or precision.
const char* refuse_kind(const Problem& p, ToeplitzFwdKind kind) {
  const bool is_float = p.dtype == DType::f32;
  if (is_float != (kind == ToeplitzFwdKind::tf32 || kind == ToeplitzFwdKind::bf16x3))
    return "the variant is for another dtype";
  if (kind == ToeplitzFwdKind::plain && p.channels_last) return "the variant is not for channels_last tensors";
  if (kind == ToeplitzFwdKind::half && !p.channels_last) return "the variant is for channels_last tensors";
  if (kind == ToeplitzFwdKind::tf32 && p.precision == Precision::bf16x3)
    return "tf32 is less exact than the bf16x3 asked for";
  return nullptr;
}

bool fits_width(const ToeplitzFwdVariant& v, const Columns& c) {
  return !v.whole || fits_width(v.offsets, v.chunks, c);
}

bool plan_variant(const Problem& p, const DeviceLimits& limits, const ToeplitzFwdVariant& v, const Geometry& geometry,
                  ToeplitzFwdPlan* best) {
  bool found = false;
  const Columns& c = geometry.columns;
  auto consider = [&](const Rows& r, Tile t) {
    const Candidate candidate(p, limits, v, r, c, t);
    if (!candidate.runs()) return false;
    found = true;
    if (candidate.least_cycles() >= best->cycles) return true;
    if (const double cycles = candidate.cycles(); cycles < best->cycles) candidate.fill(cycles, best);
    return true;
  };
  const int most_channels = p.channels_last ? 8 : 1;
  for (int i = 0; i < geometry.row_count; ++i) {
    const Rows& r = geometry.rows[i];
    const int64_t groups = slot_groups(p, r);
    each_split(r.pairs, v.pairs, [&](int pairs) {
      each_split(v.whole ? v.chunks : c.out, v.chunks, [&](int chunks) {
        const bool item_a_warp = ceil_div(pairs, v.pairs) * (v.whole ? 1 : ceil_div(chunks, v.chunks)) <= v.warps;
        if (v.kind != ToeplitzFwdKind::plain && !item_a_warp) return;
        for (int g = v.groups; g == v.groups || (g <= 16 && g < 2 * groups); g *= 2) {
          if (v.kind == ToeplitzFwdKind::plain) {
            consider(r, {pairs, chunks, g, r.table_rows});
            continue;
          }
          for (int channels = 1; channels <= most_channels && channels < 2 * p.c; channels *= 2)
            for (int parts = 1; parts <= 4; parts *= 2)
              if (consider(r, {pairs, chunks, g, ceil_div(r.table_rows, parts), channels, 1, true})) break;
          for (int turns = 2; p.dtype == DType::f32 && turns <= 8 && g * turns < 2 * groups; turns *= 2)
            consider(r, {pairs, chunks, g, r.table_rows, 1, turns, true});
        }
        if (v.whole || !item_a_warp) return;
        for (int part = ceil_div(r.table_rows, 2); part >= 1; part /= 2)  // as few parts as fit
          if (consider(r, {pairs, chunks, v.groups, part})) break;
      });
    });
  }
  return found;
}

class Planner {
 public:
  using Plan = ToeplitzFwdPlan;

  Planner(const Problem& p, const DeviceLimits& limits) : p_(p), limits_(limits), geometry_{{p, 1}, {p, 2}} {
    if (p.c == 1) p_.channels_last = false;  // the same memory
  }

  static int count(Pass pass) { return pass == Pass::fwd ? kToeplitzFwdCount : 0; }
  static const char* name(Pass, int variant) { return kToeplitzFwd[variant].name; }
  const char* refuse() const { return cuda::refuse(p_); }
  const char* refuse(int variant) const {
    if (const char* why = refuse_kind(p_, kToeplitzFwd[variant].kind)) return why;
    return fits_width(kToeplitzFwd[variant], geometry(variant).columns) ? nullptr : "the variant is for planes of another width";
  }
  bool plan(int variant, ToeplitzFwdPlan* best) const {
    return plan_variant(p_, limits_, kToeplitzFwd[variant], geometry(variant), best);
  }
  const char* none(int) const { return "the variant needs more shared memory than a block of this device has"; }

 private:
  Problem p_;
  const DeviceLimits& limits_;
  const Geometry& geometry(int variant) const { return geometry_[kToeplitzFwd[variant].line - 1]; }

  Geometry geometry_[2];  // of 2x8 tiles, of 4x4
};

}  // namespace

const Family toeplitz_fwd_family = family_of<Planner>("toeplitz_fwd", Candidates::many);

}  // namespace replknet_ext::cuda
