#include "rt_fwd_plan.h"

#include <algorithm>

#include "family.h"
#include "plan_cache.h"
#include "rt_fwd_variants.h"

namespace replknet_ext::cuda {
namespace {

// The tile sizes of rt_fwd_tile.cuh, which this file must not include: it is compiled without CUDA.
int transpose_bytes(int chunks) { return 8 * (2 * chunks + 1) * 16; }
int filter_bytes(int table_rows, int offsets) {
  return 2 * (2 * table_rows + 1) * (8 * offsets + (offsets == 7 ? 24 : 8)) * 2;
}
int64_t table_bytes(int table_rows, int offsets) { return static_cast<int64_t>(table_rows) * offsets * 512; }
int64_t plane_bytes(int pairs, int chunks) { return static_cast<int64_t>(pairs) * chunks * 256; }

int ceil_div(int a, int b) { return (a + b - 1) / b; }
int floor_div(int a, int b) { return a >= 0 ? a / b : -((-a + b - 1) / b); }

// Model constants, in cycles of one SM; predictions, used only to compare candidates.
constexpr double kMmaCycles = 6.4;       // an m16n8k16 of one of the four tensor cores by mma.sync (63 % of wgmma's rate)
constexpr double kSharedBytes = 128;     // shared memory, bytes a cycle
constexpr double kGlobalBytes = 18;      // an SM's share of memory bandwidth, bytes a cycle
constexpr double kStartCycles = 2500;    // launch, first loads, filter, barriers
constexpr double kTableCycles = 10;      // a row of fragments: shared memory traffic of its three loads and one store
constexpr double kExposed = 0.3;         // share of a block's start that the other blocks of its SM do not hide
// Share of the tensor rate that w warps an SM keep busy: one warp a scheduler waits for its own products now and then.
double busy(int w) { return w >= 12 ? 0.95 : w >= 8 ? 0.9 : w >= 4 ? 0.75 : 0.75 * w / 4; }

struct Rows {  // how row pairs meet, see RtArgs
  int split_log2, split_rows, pairs, row_offset, q_first, q_end, ky0, shift, table_rows;
  int64_t steps;  // (output pair, input pair) meetings of one slot
};

// Slots are images (split_log2 0) or row groups. False if a row group would have no rows.
bool meet_rows(const Problem& p, int split_log2, Rows* best) {
  const int slots = 1 << split_log2, h = static_cast<int>(p.h), kh = static_cast<int>(p.kh), pad = static_cast<int>(p.pad_top);
  const int all_pairs = ceil_div(static_cast<int>(p.ho), 2), pairs = ceil_div(all_pairs, slots);
  if (split_log2 && (slots - 1) * pairs >= all_pairs) return false;
  best->steps = -1;
  for (int offset = 0; offset < 2; ++offset) {
    Rows r{split_log2, 2 * pairs, pairs, offset, -(slots - 1) * pairs, ceil_div(h + offset, 2), 0, 0, 0, 0};
    r.ky0 = (pad - offset) & 1 ? -1 : 0;
    r.shift = (pad - offset - r.ky0) / 2;
    const int rows = (kh - r.ky0) / 2 + 1;
    // table rows that can meet the image
    const int low = std::max(0, r.q_first - (pairs - 1) + r.shift);
    const int high = std::max(low, std::min(rows - 1, r.q_end - 1 + r.shift));
    const int counted = std::min(pairs, 4096);
    for (int i = 0; i < counted; ++i) {  // beyond 4096 pairs edges no longer matter
      const int j = static_cast<int>(static_cast<int64_t>(pairs) * i / counted);
      r.steps += std::max(0, std::min(r.q_end - 1, j - r.shift + rows - 1) - std::max(r.q_first, j - r.shift) + 1);
    }
    r.steps = r.steps * pairs / counted;
    r.ky0 += 2 * low;
    r.shift -= low;
    r.table_rows = high - low + 1;
    if (best->steps < 0 || r.steps < best->steps) *best = r;
  }
  return true;
}

struct Columns {
  int in, out;            // chunks of the input and the output
  int d_first, d_count;   // chunk offsets with a tap that can meet the image
};

Columns meet_columns(const Problem& p) {
  Columns c{ceil_div(static_cast<int>(p.w), 8), ceil_div(static_cast<int>(p.wo), 8), 0, 0};
  const int pad = static_cast<int>(p.pad_left), kw = static_cast<int>(p.kw);
  c.d_first = std::max(-floor_div(pad + 7, 8), -(c.out - 1));
  c.d_count = std::max(1, std::min(floor_div(kw + 6 - pad, 8), c.in - 1) - c.d_first + 1);
  return c;
}

const char* refuse(const Problem& p, const DeviceLimits& limits) {
  if (p.pass != Pass::fwd) return "only fwd and bwd_input";
  if (p.algorithm == Algorithm::fft) return "computes directly, not by FFT";
  if (p.dtype != DType::f16 && p.dtype != DType::bf16) return "only float16 and bfloat16 run on tensor cores here";
  if (p.channels_last) return "channels_last tensors are not supported";
  if (limits.capability < 80) return "needs a GPU of compute capability 8.0 or newer";
  return nullptr;
}

// A whole-plane kernel serves the filters that need all of its offsets: more would waste products and spread NaN.
bool fits_width(const RtVariant& v, const Columns& c) {
  const int needed = std::max(-c.d_first, c.d_first + c.d_count - 1);
  return !v.whole || (c.in == v.chunks && c.out == v.chunks && needed == std::min(v.offsets / 2, v.chunks - 1));
}

struct Tile {
  int pairs, chunks, groups, pass_rows;
};

class Candidate {
 public:
  Candidate(const Problem& p, const DeviceLimits& limits, const RtVariant& v, const Rows& r, const Columns& c, Tile t)
      : p_(p), limits_(limits), v_(v), r_(r), c_(c), t_(t) {
    columns_ = v.whole ? 1 : ceil_div(t.chunks, v.chunks);
    in_chunks_ = v.whole ? v.chunks : columns_ * v.chunks + v.offsets - 1;
    passes_down_ = ceil_div(r.table_rows, t.pass_rows);
    passes_along_ = v.whole ? 1 : ceil_div(c.d_count, v.offsets);
    const int items = ceil_div(t.pairs, v.pairs) * columns_ * (t.groups / v.groups);
    rounds_ = ceil_div(items, v.warps);
    warps_ = ceil_div(items, rounds_);
    const int in_pairs = std::min(r.q_end - r.q_first, t.pairs + t.pass_rows - 1);
    plane_ = plane_bytes(in_pairs, in_chunks_);
    shared_ = table_bytes(t.pass_rows, v.offsets) + t.groups * plane_ +
              std::max(filter_bytes(t.pass_rows, v.offsets), warps_ * transpose_bytes(v.chunks));
  }

  bool runs() const {
    const int64_t tiles = static_cast<int64_t>(ceil_div(r_.pairs, t_.pairs)) * ceil_div(c_.out, t_.chunks);
    if (p_.c * tiles > 0x7fffffff) return false;  // the grid's first axis
    // a filter in parts keeps a warp's sums in registers: one item a warp
    return shared_ <= limits_.shared_per_block && (passes_down_ * passes_along_ == 1 || (!v_.whole && rounds_ == 1));
  }

  void fill(int variant, RtPlan* out) const {
    const int by_registers = (limits_.capability == 90 ? v_.blocks : v_.blocks_elsewhere) * v_.warps / warps_;
    const int resident = std::min({std::max(1, static_cast<int>(limits_.shared_per_sm / (shared_ + 1024))), by_registers, 16});
    const int64_t slots = p_.n << r_.split_log2, groups = (slots + 7) / 8;
    const int pair_tiles = ceil_div(r_.pairs, t_.pairs), chunk_tiles = v_.whole ? 1 : ceil_div(c_.out, t_.chunks);
    const int64_t group_tiles = (groups + t_.groups - 1) / t_.groups;
    const int64_t blocks = p_.c * group_tiles * pair_tiles * chunk_tiles;

    // products of a block, from the meetings of a slot's pairs
    int per_step = v_.offsets * v_.chunks * columns_ * passes_along_;
    if (v_.whole) {
      per_step = 0;
      for (int d = -(v_.offsets / 2); d <= v_.offsets / 2; ++d) per_step += std::max(0, v_.chunks - std::abs(d));
    }
    const double steps = static_cast<double>(r_.steps) / pair_tiles;
    const double mmas = steps * per_step * t_.groups;
    const double reads = steps / (v_.pairs * v_.groups) * columns_ * t_.groups * passes_along_ *
                         (v_.offsets * (v_.rotate ? 512.0 : 512.0 * v_.pairs) +
                          256.0 * v_.groups * (v_.whole ? v_.chunks : v_.chunks + v_.offsets - 1));
    const double rounds = static_cast<double>((blocks + limits_.sms - 1) / limits_.sms);
    const double tensor = mmas / 4 * kMmaCycles, shared = reads / kSharedBytes;
    // the last block of an SM, and the only one, runs on its own warps
    const double alone = std::max(tensor / busy(warps_), shared);
    const double together = std::max(tensor / busy(warps_ * std::min<int>(resident, static_cast<int>(rounds))), shared);
    const int passes = passes_down_ * passes_along_;
    const double bytes = t_.groups * static_cast<double>(plane_) * passes +
                         t_.groups * 16.0 * 8 * 2 * t_.pairs * columns_ * v_.chunks;
    const double start = kStartCycles * passes + kTableCycles * r_.table_rows * v_.offsets * passes_along_;
    const double fill = start + bytes / kGlobalBytes;
    const double overlapped = std::max(together + kExposed * fill, bytes / kGlobalBytes);
    const double cycles = resident >= 2 ? (rounds - 1) * overlapped + alone + fill : rounds * (alone + fill);

    out->args = {};
    RtArgs& a = out->args;
    a.n = static_cast<int>(p_.n), a.c = static_cast<int>(p_.c);
    a.h = static_cast<int>(p_.h), a.width = static_cast<int>(p_.w);
    a.ho = static_cast<int>(p_.ho), a.wo = static_cast<int>(p_.wo);
    a.kh = static_cast<int>(p_.kh), a.kw = static_cast<int>(p_.kw), a.pad_left = static_cast<int>(p_.pad_left);
    a.flip = p_.flip, a.activation = static_cast<int>(p_.activation);
    a.split_log2 = r_.split_log2, a.split_rows = r_.split_rows, a.row_offset = r_.row_offset;
    a.q_first = r_.q_first, a.q_end = r_.q_end, a.ky0 = r_.ky0, a.shift = r_.shift, a.table_rows = r_.table_rows;
    a.d_first = c_.d_first, a.pairs = r_.pairs, a.chunks = c_.out;
    a.block_pairs = t_.pairs, a.block_chunks = v_.whole ? c_.out : t_.chunks, a.block_groups = t_.groups;
    a.pair_tiles = pair_tiles, a.chunk_tiles = chunk_tiles;
    a.pass_rows = t_.pass_rows, a.passes_down = passes_down_, a.passes_along = passes_along_;
    a.in_chunks = in_chunks_, a.plane = static_cast<int>(plane_);
    out->groups = groups;
    out->plan = {variant,   v_.name, 1 << r_.split_log2,       t_.pairs, a.block_chunks,
                 t_.groups, passes,  warps_,                   static_cast<int>(shared_),
                 resident,  blocks,  mmas * static_cast<double>(blocks),
                 cycles,    0,      0};
    // taps of the first and last fragments that lie outside the filter
    const int d_low = v_.whole ? -std::min(v_.offsets / 2, v_.chunks - 1) : c_.d_first;
    const int d_high = v_.whole ? -d_low : c_.d_first + passes_along_ * v_.offsets - 1;
    const int ky_low = r_.ky0 - 1, ky_high = r_.ky0 + 2 * r_.table_rows - 1;
    out->plan.spill_rows = std::max({0, -ky_low, ky_high - a.kh + 1});
    out->plan.spill_columns = std::max({0, 7 - 8 * d_low - a.pad_left, 8 * d_high + 7 + a.pad_left - a.kw + 1});
  }

 private:
  const Problem& p_;
  const DeviceLimits& limits_;
  const RtVariant& v_;
  const Rows& r_;
  const Columns& c_;
  Tile t_;
  int columns_, in_chunks_, passes_down_, passes_along_, rounds_, warps_;
  int64_t plane_, shared_;
};

// Calls use(size) for the whole extent and its halves, thirds ... rounded up to a multiple of unit, down to unit.
template <class Use>
void each_split(int extent, int unit, const Use& use) {
  int last = 0;
  for (int parts = 1; last != unit; parts += std::max(1, parts / 4)) {
    const int size = ceil_div(ceil_div(extent, parts), unit) * unit;
    if (size == last) {
      if (parts > extent) break;
      continue;
    }
    use(last = size);
  }
}

bool plan_variant(const Problem& p, const DeviceLimits& limits, int variant, const Rows* rows, int row_count,
                  const Columns& c, RtPlan* best) {
  const RtVariant& v = kRtFwd[variant];
  if (!fits_width(v, c)) return false;
  bool found = false;
  auto consider = [&](const Rows& r, Tile t) {
    const Candidate candidate(p, limits, v, r, c, t);
    if (!candidate.runs()) return false;
    RtPlan plan;
    candidate.fill(variant, &plan);
    if (!found || plan.plan.cycles < best->plan.cycles) *best = plan;
    return found = true;
  };
  for (int i = 0; i < row_count; ++i) {
    const Rows& r = rows[i];
    const int64_t groups = ((p.n << r.split_log2) + 7) / 8;
    each_split(r.pairs, v.pairs, [&](int pairs) {
      each_split(v.whole ? v.chunks : c.out, v.chunks, [&](int chunks) {
        for (int g = v.groups; g == v.groups || (g <= 16 && g < 2 * groups); g *= 2)
          consider(r, {pairs, chunks, g, r.table_rows});
        if (v.whole || ceil_div(pairs, v.pairs) * ceil_div(chunks, v.chunks) > v.warps) return;
        for (int part = ceil_div(r.table_rows, 2); part >= 1; part /= 2)  // as few parts as fit
          if (consider(r, {pairs, chunks, v.groups, part})) break;
      });
    });
  }
  return found;
}

const char* make_plan(const Problem& p, const DeviceLimits& limits, int variant, RtPlan* plan) {
  if (const char* why = refuse(p, limits)) return why;
  const Columns columns = meet_columns(p);
  if (variant >= 0 && !fits_width(kRtFwd[variant], columns)) return "the variant is for planes of another width";
  Rows rows[4];
  int row_count = 0;
  // Row groups waste rows at their seams, images that do not fill a group of 8 waste columns: count both.
  for (int split = 0; split <= 3; ++split)
    if (split == 0 || (p.n % 8 != 0 && p.n < 64)) row_count += meet_rows(p, split, &rows[row_count]);
  bool found = false;
  for (int i = 0; i < kRtFwdCount; ++i) {
    if (variant >= 0 && i != variant) continue;
    RtPlan candidate;
    if (plan_variant(p, limits, i, rows, row_count, columns, &candidate) &&
        (!found || candidate.plan.cycles < plan->plan.cycles)) {
      *plan = candidate;
      found = true;
    }
  }
  return found ? nullptr : "the variant needs more shared memory than a block of this device has";
}

}  // namespace

const char* plan_rt_fwd(const Problem& p, const DeviceLimits& limits, int variant, RtPlan* plan) {
  return cached_plan<RtPlan, struct RtFwd>(p, limits, variant, plan,
                                           [&](RtPlan* out) { return make_plan(p, limits, variant, out); });
}

namespace {
int count(Pass pass) { return pass == Pass::fwd ? kRtFwdCount : 0; }
const char* name_of(Pass, int variant) { return kRtFwd[variant].name; }
const char* plan_family(const Problem& p, const DeviceLimits& limits, int variant, LaunchPlan* out) {
  RtPlan found;
  const char* why = plan_rt_fwd(p, limits, variant, &found);
  if (!why) *out = found.plan;
  return why;
}
}  // namespace

const Family rt_fwd_family{"rt_fwd", count, name_of, plan_family};

}  // namespace replknet_ext::cuda
