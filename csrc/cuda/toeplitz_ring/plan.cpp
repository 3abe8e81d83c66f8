#include "../family.h"
#include "../model.h"
#include "../toeplitz_fwd/geometry.h"
#include "../toeplitz_fwd/sizes.h"
#include "args.h"
#include "variants.h"

namespace replknet_ext::cuda {
namespace {

class Candidate {
 public:
  // turns: groups of slots, by v.groups, that a block computes one after the other
  Candidate(const Problem& p, const DeviceLimits& limits, const ToeplitzRingVariant& v, const Rows& rows, const Columns& c,
            int64_t turns)
      : p_(p), limits_(limits), v_(v), r_(rows), c_(c), turns_(turns) {
    // the input pairs that some output pair meets; one at least, for the barrier after the table
    r_.q_first = std::max(rows.q_first, -rows.shift);
    r_.q_end = std::max(r_.q_first + 1, std::min(rows.q_end, rows.pairs - 1 - rows.shift + rows.table_rows));
    warps_ = ceil_div(std::min(r_.table_rows, r_.pairs), v.pairs);
    in_chunks_ = v.whole ? v.chunks : v.chunks + v.offsets - 1;
    chunk_tiles_ = v.whole ? 1 : ceil_div(c.out, v.chunks);
    const int64_t table_rows = r_.table_rows;
    shared_ = table_bytes(table_rows, v.offsets) + kRingStages * v.groups * stage_bytes() +
              std::max<int64_t>(filter_bytes(table_rows, v.offsets, v.line), warps_ * transpose_bytes(v.chunks));
  }

  bool runs() const {
    return warps_ <= kRingWarps && shared_ <= limits_.shared_per_block && p_.c * chunk_tiles_ <= 0x7fffffff;
  }

  double cycles() const {
    const int resident = resident_of();
    const double meetings = static_cast<double>(r_.steps) * v_.groups;  // of output and input pairs, of a turn
    const double products = products_per_meeting(v_.offsets, v_.chunks, v_.whole);
    const double reads = meetings * (v_.offsets * 512.0 / v_.groups + in_chunks_ * 256.0 / v_.pairs) / kSharedBytes;
    const double in_bytes = static_cast<double>(r_.q_end - r_.q_first) * in_chunks_ * 256 * v_.groups;
    const double out_bytes = static_cast<double>(r_.pairs) * v_.chunks * 256 * v_.groups;
    const double all = static_cast<double>(blocks()) * static_cast<double>(turns_);
    // Slots without an image are not loaded. What row groups and the halos of tiles load again comes from L2.
    const double used = static_cast<double>(p_.n << r_.split_log2) / (static_cast<double>(block_rows() * turns_) * v_.groups * 8);
    const auto moved = [&](double bytes, int64_t rows, int64_t columns) {
      return std::max(2.0 * static_cast<double>(p_.n * p_.c * rows * columns) / all / kGlobalBytes, bytes * used / kL2Bytes);
    };
    const double loads = moved(in_bytes, p_.h, p_.w), stores = moved(out_bytes, p_.ho, p_.wo);
    // Only the first rows are waited for, and only the last pairs' stores: those that are in work together.
    const double first = std::min(1.0, static_cast<double>(kRingStages * kRingStagePairs) / (r_.q_end - r_.q_first));
    const double last = std::min(1.0, static_cast<double>(r_.table_rows) / r_.pairs);
    const double load = kTableCycles * r_.table_rows * v_.offsets + loads * first, turns = static_cast<double>(turns_);
    const BlockCycles block{load, kStartCycles + load, turns * (loads + stores), stores * last};
    return sm_cycles(Waves(blocks(), resident, limits_.sms), block, [&](int n) {
      // A block alone waits at every stage for the scheduler with the most pairs; others fill such gaps of each other.
      const double tensor = products * (n == 1 ? busiest_meetings() * v_.groups : meetings) / 4 * kMmaCycles;
      return turns * n * std::max(tensor / busy(n * warps_), reads);
    });
  }

  void fill(double cycles, ToeplitzFwdPlan* out) const {
    out->args = {};
    ToeplitzFwdArgs& a = out->args;
    set_problem(p_, r_, c_, &a);
    a.block_pairs = r_.pairs, a.block_chunks = v_.whole ? c_.out : v_.chunks, a.block_groups = v_.groups;
    a.pair_tiles = 1, a.chunk_tiles = chunk_tiles_;
    a.part_rows = r_.table_rows, a.parts_down = 1, a.parts_along = 1;
    a.in_chunks = in_chunks_, a.plane = static_cast<int>(stage_bytes());
    a.block_channels = 1, a.turns = static_cast<int>(turns_);
    out->groups = groups();
    out->warps = warps_, out->shared_bytes = static_cast<int>(shared_);
    out->blocks_per_sm = resident_of(), out->blocks = blocks();
    out->mmas = static_cast<double>(r_.steps) * products_per_meeting(v_.offsets, v_.chunks, v_.whole) * v_.groups *
                static_cast<double>(p_.c * chunk_tiles_ * ceil_div(groups(), static_cast<int64_t>(v_.groups)));
    out->cycles = cycles;
    out->details = {{{"row_groups", 1 << r_.split_log2}, {"block_groups", v_.groups}, {"turns", turns_}}};
    set_spill(r_, c_, v_.line, v_.offsets, v_.chunks, v_.whole, out);
  }

 private:
  int64_t groups() const { return slot_groups(p_, r_); }
  int64_t block_rows() const { return ceil_div(groups(), v_.groups * turns_); }  // of the grid
  int64_t blocks() const { return p_.c * chunk_tiles_ * block_rows(); }
  int64_t stage_bytes() const { return static_cast<int64_t>(kRingStagePairs) * in_chunks_ * 256; }
  int resident_of() const { return resident_blocks(limits_, warps_, shared_, kRingWarps); }
  // Four times the meetings of the busiest scheduler where all warps do one input pair after the other. The output pairs
  // in work are neighbours, so they spread evenly over warps, and these over the four schedulers.
  double busiest_meetings() const {
    const auto of = [&](int64_t q) {
      const int64_t low = std::max<int64_t>(0, q + r_.shift - r_.table_rows + 1), high = std::min<int64_t>(r_.pairs - 1, q + r_.shift);
      return static_cast<double>(ceil_div(std::max<int64_t>(0, high - low + 1), int64_t{4} * v_.pairs) * 4 * v_.pairs);
    };
    // up and down again: as many steps each as there are table rows at the most; between them nothing changes
    const int64_t first = r_.q_first, end = r_.q_end, ramp = std::min<int64_t>(end - first, 2 * r_.table_rows + 2);
    double sum = 0;
    for (int64_t q = first; q < first + ramp / 2; ++q) sum += of(q);
    for (int64_t q = end - (ramp - ramp / 2); q < end; ++q) sum += of(q);
    return sum + static_cast<double>(end - first - ramp) * of(first + ramp / 2);
  }

  const Problem& p_;
  const DeviceLimits& limits_;
  const ToeplitzRingVariant& v_;
  Rows r_;
  const Columns& c_;
  int64_t turns_;
  int warps_, in_chunks_, chunk_tiles_;
  int64_t shared_;
};

class Planner {
 public:
  using Plan = ToeplitzFwdPlan;

  Planner(const Problem& p, const DeviceLimits& limits) : p_(p), limits_(limits), geometry_{{p, 1}, {p, 2}} {}

  static int count(Pass pass) { return pass == Pass::fwd ? kToeplitzRingCount : 0; }
  static const char* name(Pass, int variant) { return kToeplitzRing[variant].name; }
  const char* refuse() const {
    if (p_.pass != Pass::fwd) return "only fwd and bwd_input";
    if (p_.algorithm == Algorithm::fft) return "computes directly, not by FFT";
    if (p_.dtype != DType::f16 && p_.dtype != DType::bf16) return "only float16 and bfloat16";
    if (p_.channels_last && p_.c > 1) return "only contiguous tensors, not channels_last";
    return nullptr;
  }
  const char* refuse(int variant) const {
    const ToeplitzRingVariant& v = kToeplitzRing[variant];
    if (v.whole) return fits_width(v.offsets, v.chunks, geometry(variant).columns) ? nullptr : "the variant is for planes of another width";
    return geometry(variant).columns.d_count <= v.offsets ? nullptr : "the filter is wider than the variant's";
  }
  bool plan(int variant, ToeplitzFwdPlan* best) const {
    const ToeplitzRingVariant& v = kToeplitzRing[variant];
    bool found = false;
    const Geometry& geometry = this->geometry(variant);
    for (int i = 0; i < geometry.row_count; ++i) {
      const Rows& r = geometry.rows[i];
      each_split(static_cast<int>(ceil_div(slot_groups(p_, r), v.groups)), 1, [&](int turns) {
        const Candidate candidate(p_, limits_, v, r, geometry.columns, turns);
        if (!candidate.runs()) return;
        found = true;
        if (const double cycles = candidate.cycles(); cycles < best->cycles) candidate.fill(cycles, best);
      });
    }
    return found;
  }
  const char* none(int) const { return "the filter has more rows than the ring has pairs, or needs more shared memory"; }

 private:
  Problem p_;
  const DeviceLimits& limits_;
  const Geometry& geometry(int variant) const { return geometry_[kToeplitzRing[variant].line - 1]; }

  Geometry geometry_[2];  // of 2x8 tiles, of 4x4
};

}  // namespace

const Family toeplitz_ring_family = family_of<Planner>("toeplitz_ring");

}  // namespace replknet_ext::cuda
