#include "plan.h"

#include <algorithm>

#include "../../integers.h"
#include "../family.h"
#include "../model.h"
#include "variants.h"

namespace replknet_ext::cuda {
namespace {

// Instructions beside the multiply-adds, counted in the compiled kernels. Latencies are guesses.
constexpr double kStepIssue = 20, kWeightStepIssue = 45;  // of an input row: loop, addresses
constexpr double kLoadIssue = 4;      // of an access to global memory: address, predicate
constexpr double kOutputIssue = 3;    // of an output: activation, rounding
constexpr double kJoinIssue = 1.5, kWeightJoinIssue = 12;  // of an input row and an output row: bounds, ring
constexpr double kItemIssue = 250;    // of an item: its place, first row
constexpr double kRowLatency = 900;   // of a row on its way from global memory: one is under way at a time
constexpr double kOverlap = 0.2;      // share of the second largest of the SM's tasks that the largest does not hide

// The busiest SM's cycles for arithmetic and the like (issue), L1, L2 and global memory, and how they add up.
struct Work {
  double issue = 0, l1 = 0, l2 = 0, memory = 0, latency = 0;

  double cycles() const {
    double all[] = {issue, l1, std::max(l2, memory)};
    std::sort(all, all + 3);
    return std::max(all[2] + kOverlap * all[1], latency);
  }
};

// Tiles of so many rows: input rows of the average tile that lie inside the image, and the output rows that they meet.
struct Tiling {
  Tiling(const Problem& p, const StencilVariant& v, int tile_rows) : rows(tile_rows), count(ceil_div(p.ho, tile_rows)) {
    const bool weight = p.pass == Pass::bwd_weight;
    parts = weight ? ceil_div(p.kh, v.rows) : 1;
    part_rows = weight ? static_cast<int>(ceil_div(p.kh, parts)) : v.taps;
    met = weight ? part_rows : static_cast<int>(p.kh), steps = rows + met - 1;
    const int64_t sample = std::max<int64_t>(1, count / 16);
    for (int64_t tile = 0; tile < count; tile += sample) {
      const double times = static_cast<double>(std::min(sample, count - tile)) / count;
      const int64_t low = p.pad_top - tile * rows, high = low + p.h;  // the steps in the image
      inside += times * static_cast<double>(std::max<int64_t>(0, std::min<int64_t>(steps, high) - std::max<int64_t>(0, low)));
      meetings += times * pairs_between(rows, met, low, high);
      all_meetings += times * (static_cast<double>(rows) * met);
    }
  }
  int rows, part_rows = 0, met = 0, steps = 0;
  int64_t count, parts = 1;
  double inside = 0, meetings = 0, all_meetings = 0;
};

class Candidate {
 public:
  Candidate(const Problem& p, const DeviceLimits& limits, const StencilVariant& v, const Tiling& t, int channels_log2)
      : p_(p), limits_(limits), v_(v), t_(t), weight_(p.pass == Pass::bwd_weight), log2_(channels_log2) {
    strips_ = ceil_div(p.wo, v.columns());
    items_ = p.n * t.count * strips_;
    channel_groups_ = ceil_div(ceil_div(p.c, v.channels()), lanes());
    const int sums = kStencilThreads / 32 * lanes() * stencil_sums_pitch(v.rows, v.taps, v.channels()) * 4;
    shared_ = weight_ ? std::max(sums, stencil_ring_bytes(v.rows, v.is_float, v.last))
                      : lanes() * stencil_filter_pitch(v.taps, v.channels()) * 4;
    constexpr int kWarps = kStencilThreads / 32;
    resident_ = resident_blocks(limits, kWarps, shared_, (weight_ ? v.weight_blocks : v.blocks) * kWarps);
    count_work();
    take_turns(1);
  }

  // Items that a block's threads take one after the other.
  void take_turns(int turns) {
    turns_ = turns;
    item_blocks_ = ceil_div(items_, int64_t{block_items()} * turns);
  }
  int64_t all_turns() const { return ceil_div(items_, int64_t{block_items()}); }

  // Less than `cycles` of any number of turns: the work of all turns, spread over the device. Less than that of these
  // turns: their loads wait for each other, and partial sums pass through memory.
  double least_cycles() const {
    const double turns = static_cast<double>(channel_groups_ * t_.parts) * static_cast<double>(items_) / block_items();
    return kStartCycles + kAlmost * turns * std::max({turn_.issue / kMostBusy, turn_.l1, turn_.l2}) / limits_.sms;
  }
  double least_by_turns() const { return kStartCycles + kAlmost * turns_ * turn_.latency; }
  double least_by_sums() const { return kStartCycles + kAlmost * sums_cycles(); }

  bool runs() const {
    return items_ <= 0x7fffffff - kStencilThreads && blocks() <= 0x7fffffff && shared_ <= limits_.shared_per_block;
  }

  double cycles() const {
    const double turns = turns_;
    const Work block{turns * turn_.issue + once_.issue, turns * turn_.l1, turns * turn_.l2 + once_.l2, 0, turns * turn_.latency};
    const double memory = tensor_bytes() / static_cast<double>(blocks()) / kGlobalBytes;
    const auto side_by_side = [&](int n) {
      const double issue = block.issue / busy(kStencilThreads / 32 * n);
      return Work{n * issue, n * block.l1, n * block.l2, n * memory, block.latency}.cycles();
    };
    const double all = sm_cycles(Waves(blocks(), resident_, limits_.sms), {0, kRowLatency, 0, 0}, side_by_side);
    return all + sums_cycles();
  }

  void fill(int left, int pad_left, StencilPlan* out) const {
    out->args = {};
    StencilArgs& a = out->args;
    a.n = static_cast<int>(p_.n), a.c = static_cast<int>(p_.c);
    a.kh = static_cast<int>(p_.kh), a.kw = static_cast<int>(p_.kw), a.top = v_.taps - a.kh, a.left = left;
    a.pad_top = static_cast<int>(p_.pad_top), a.pad_left = pad_left;
    a.flip = p_.flip, a.activation = weight_ ? 0 : static_cast<int>(p_.activation);
    a.dtype = v_.is_float ? 0 : p_.dtype == DType::f16 ? 1 : 2;
    a.channels_log2 = log2_, a.channel_groups = static_cast<int>(channel_groups_);
    a.strips = static_cast<int>(strips_), a.tile_rows = t_.rows, a.items = static_cast<int>(items_), a.turns = turns_;
    a.parts = static_cast<int>(t_.parts), a.part_rows = t_.part_rows;
    out->splits = weight_ ? static_cast<int>(item_blocks_) : 1;
    out->details = {{{"tiles", t_.count}, {"tile_rows", t_.rows}, {"tile_columns", v_.columns()}, {"block_items", block_items()}}};
    out->warps = kStencilThreads / 32, out->shared_bytes = shared_, out->blocks_per_sm = resident_;
    out->blocks = blocks(), out->cycles = cycles();
    out->spill_rows = weight_ ? -1 : 0, out->spill_columns = weight_ ? -1 : v_.taps - a.kw;
    out->workspace_bytes = out->splits > 1 ? workspace() : 0;
  }

 private:
  int lanes() const { return 1 << log2_; }
  int block_items() const { return kStencilThreads >> log2_; }
  int64_t blocks() const { return channel_groups_ * item_blocks_ * t_.parts; }
  int64_t workspace() const { return item_blocks_ * p_.c * (p_.kh * p_.kw + 1) * 4; }
  double sums_cycles() const {  // of the launch that adds up what blocks have summed
    return weight_ && item_blocks_ > 1 ? second_launch_cycles(limits_, static_cast<double>(workspace())) : 0;
  }
  int size() const { return v_.is_float ? 4 : 2; }
  double tensor_bytes() const {
    return static_cast<double>(p_.n * p_.c) * size() * static_cast<double>(p_.h * p_.w + p_.ho * p_.wo);
  }

  // Elements of an access, and accesses of a row of `columns` with a halo, by the width of a row in memory.
  int vec(int64_t width) const {
    const int most = 16 / size();
    if (v_.last) return v_.channels() == 2 && p_.c % 2 == 0 ? 2 : 1;
    const int64_t fits = (width | most) & -(width | most);
    return static_cast<int>(fits);
  }
  double accesses(int64_t width, int halo) const {
    const int along = v_.columns() + 2 * halo, elements = vec(width);
    if (v_.last) return static_cast<double>(along) * v_.channels() / elements;
    if (elements >= 4) return static_cast<double>(v_.columns()) / elements + (halo > 4 ? 4 : halo > 0 ? 2 : 0);
    return elements == 2 ? v_.columns() / 2 + (halo + 1) / 2 * 2 : along;
  }
  // Cache lines that a warp's access touches: those of a row's strips, of several rows, of several planes.
  double lines() const {
    if (v_.last) return std::max(1, 32 / lanes());
    const double items = 32. / lanes(), rows = items / static_cast<double>(strips_);
    return lanes() * std::max({1., rows, items * v_.columns() * size() / 128});
  }

  // What a turn costs a block, and what the block costs beside its turns.
  void count_work() {
    const int taps = v_.taps, halo = taps / 2, steps = t_.steps, rows = t_.rows;
    const double inside = t_.inside;
    const bool alike = p_.n * strips_ >= block_items();  // else warps of several tiles meet rows outside as well
    double meetings = alike ? t_.meetings : t_.all_meetings;
    if (weight_)  // parts have fewer rows
      meetings *= static_cast<double>(p_.kh) / static_cast<double>(t_.parts * t_.part_rows);
    const double per_row = static_cast<double>(taps) * v_.columns() * v_.channels();
    const double loads = accesses(p_.w, halo), out_accesses = accesses(p_.wo, 0);
    const double halves = v_.is_float ? 0 : 1, warps = kStencilThreads / 32;
    double issue = kItemIssue + steps * ((weight_ ? kWeightStepIssue : kStepIssue) + kLoadIssue * loads) +
                   inside * (v_.columns() + taps - 1) * v_.channels();
    double l1 = inside * loads * lines();
    double shared = 0;  // cycles
    if (weight_) {
      const double pieces = stencil_ring_pieces(v_.is_float, v_.last);
      issue += meetings * (per_row + kWeightJoinIssue + pieces + halves * v_.columns() * v_.channels()) +
               steps * pieces + rows * (kLoadIssue * out_accesses + v_.columns() * v_.channels());
      l1 += rows * out_accesses * lines(), shared += 4 * pieces * (meetings + steps);
    } else {
      const double quads = stencil_filter_row(taps, v_.channels()) / 4;
      issue += meetings * (per_row + kJoinIssue + quads) +
               rows * (kLoadIssue * out_accesses + kOutputIssue * v_.columns() * v_.channels());
      l1 += rows * out_accesses * lines(), shared += meetings * quads * std::min(4., lanes() / 2.);
    }
    turn_.issue = issue;  // a block's 4 warps on the SM's 4 schedulers
    turn_.l1 = warps * (l1 + shared);
    // what crosses from L2 to the SM: rows of the halo again, and whole sectors
    const double sectors = v_.last ? std::max(1., 32. / (lanes() * v_.channels() * size())) : 1;
    const double elements = static_cast<double>(kStencilThreads) * v_.columns() * v_.channels() * size();
    turn_.l2 = elements * sectors * (inside + rows) / kL2Bytes;
    turn_.latency = (steps + 1.) * kRowLatency;
    const double filter = static_cast<double>(lanes()) * v_.channels() * taps * taps;
    if (weight_) {
      const double sums = static_cast<double>(v_.rows * taps + 1) * v_.channels();
      once_.issue = sums * (2. * (5 - log2_) + 1) + sums * lanes() / 32 * 6;
    } else {
      once_.issue = filter / kStencilThreads * 30;
      once_.l2 = filter * size() / kL2Bytes;
    }
  }

  const Problem& p_;
  const DeviceLimits& limits_;
  const StencilVariant& v_;
  const Tiling& t_;
  bool weight_;
  int log2_, turns_ = 1, shared_, resident_;
  int64_t strips_, items_, channel_groups_, item_blocks_;
  Work turn_, once_;
};

const char* refuse(const Problem& p) {
  if (p.algorithm == Algorithm::fft) return "computes directly, not by FFT";
  if (p.dtype == DType::f64) return "float64 does not run in the stencil kernels";
  if (p.kh > 11 || p.kw > 11) return "the stencil kernels take filters of up to 11 x 11";
  return nullptr;
}

const char* refuse_variant(const Problem& p, const StencilVariant& v) {
  if (v.is_float != (p.dtype == DType::f32)) return "the variant is for another dtype";
  if (v.last && !p.channels_last) return "the variant is for channels_last tensors";
  if (!v.last && p.channels_last) return "the variant is not for channels_last tensors";
  if (p.kh > v.taps || p.kw > v.taps) return "the variant is for smaller filters";
  if (v.taps > 7 && std::max(p.kh, p.kw) <= v.taps - 4) return "the variant is for larger filters";
  // NCHW: a thread's accesses are aligned where the square of taps is centred on its column
  const int64_t left = v.taps / 2 - p.pad_left;
  if (!v.last && (left < 0 || left + p.kw > v.taps))
    return "the variant needs a padding on the left of half its taps or a little less";
  return nullptr;
}

bool plan_variant(const Problem& p, const DeviceLimits& limits, const StencilVariant& v, StencilPlan* best) {
  bool found = false;
  const bool weight = p.pass == Pass::bwd_weight;
  const int left = v.last ? 0 : static_cast<int>(v.taps / 2 - p.pad_left);
  const int pad_left = static_cast<int>(p.pad_left) + left;
  const auto keep = [&](Candidate& candidate, int64_t turns) {
    candidate.take_turns(static_cast<int>(turns));
    if (!candidate.runs() || candidate.least_by_sums() >= best->cycles || candidate.cycles() >= best->cycles) return;
    candidate.fill(left, pad_left, best);
    found = true;
  };
  for (int64_t parts = 1, last = 0; last != 1; parts *= 2) {
    const int rows = static_cast<int>(std::max<int64_t>(1, ceil_div(p.ho, parts)));
    if (rows == last) continue;
    last = rows;
    const Tiling tiling(p, v, rows);
    for (int log2 = 0; log2 <= 5 && (1 << log2) < 2 * ceil_div(p.c, v.channels()); ++log2) {
      Candidate candidate(p, limits, v, tiling, log2);
      if (candidate.least_cycles() >= best->cycles) continue;
      const int64_t all = candidate.all_turns(), most = weight ? std::min<int64_t>(all, 4096) : 1;
      for (int64_t turns = 1; turns <= most; turns += (turns + 1) / 2) {
        keep(candidate, turns);
        if (candidate.least_by_turns() >= best->cycles) break;  // nor do more of them help
      }
      if (weight && all <= 4096) keep(candidate, all);
    }
  }
  return found;
}

class Planner {
 public:
  using Plan = StencilPlan;

  Planner(const Problem& p, const DeviceLimits& limits) : p_(p), limits_(limits) {
    if (p.c == 1) p_.channels_last = false;  // the same memory
  }

  static int count(Pass) { return kStencilCount; }
  static const char* name(Pass pass, int variant) {
    return pass == Pass::bwd_weight ? kStencil[variant].weight : kStencil[variant].fwd;
  }
  const char* refuse() const { return cuda::refuse(p_); }
  const char* refuse(int variant) const { return refuse_variant(p_, kStencil[variant]); }
  bool plan(int variant, StencilPlan* best) const { return plan_variant(p_, limits_, kStencil[variant], best); }
  const char* none(int variant) const {
    return variant < 0 ? "no stencil kernel has this padding on the left, or there are more than 2^31 strips of outputs"
                       : "there are more than 2^31 strips of outputs";
  }

 private:
  Problem p_;
  const DeviceLimits& limits_;
};

}  // namespace

const Family stencil_family = family_of<Planner>("stencil");

}  // namespace replknet_ext::cuda
