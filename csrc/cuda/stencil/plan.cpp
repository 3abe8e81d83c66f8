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

class Candidate {
 public:
  Candidate(const Problem& p, const DeviceLimits& limits, const StencilVariant& v, int tile_rows, int channels_log2,
            int turns)
      : p_(p), limits_(limits), v_(v), weight_(p.pass == Pass::bwd_weight), rows_(tile_rows), log2_(channels_log2),
        turns_(turns) {
    strips_ = ceil_div(p.wo, v.columns());
    tiles_ = ceil_div(p.ho, rows_);
    items_ = p.n * tiles_ * strips_;
    channel_groups_ = ceil_div(ceil_div(p.c, v.channels()), lanes());
    item_blocks_ = ceil_div(items_, int64_t{block_items()} * turns);
    parts_ = weight_ ? ceil_div(p.kh, v.rows) : 1;
    part_rows_ = weight_ ? static_cast<int>(ceil_div(p.kh, parts_)) : v.taps;
    const int sums = kStencilThreads / 32 * lanes() * stencil_sums_pitch(v.rows, v.taps, v.channels()) * 4;
    shared_ = weight_ ? std::max(sums, stencil_ring_bytes(v.rows, v.is_float, v.last))
                      : lanes() * stencil_filter_pitch(v.taps, v.channels()) * 4;
    constexpr int kWarps = kStencilThreads / 32;
    resident_ = resident_blocks(limits, kWarps, shared_, (weight_ ? v.weight_blocks : v.blocks) * kWarps);
  }

  bool runs() const {
    return items_ <= 0x7fffffff - kStencilThreads && blocks() <= 0x7fffffff && shared_ <= limits_.shared_per_block;
  }

  double cycles() const {
    const Work block = block_work();
    const double memory = tensor_bytes() / static_cast<double>(blocks()) / kGlobalBytes;
    const auto side_by_side = [&](int n) {
      const double issue = block.issue / busy(kStencilThreads / 32 * n);
      return Work{n * issue, n * block.l1, n * block.l2, n * memory, block.latency}.cycles();
    };
    const double all = sm_cycles(Waves(blocks(), resident_, limits_.sms), {0, kRowLatency, 0, 0}, side_by_side);
    const bool in_splits = weight_ && item_blocks_ > 1;
    return all + (in_splits ? second_launch_cycles(limits_, static_cast<double>(workspace())) : 0);
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
    a.strips = static_cast<int>(strips_), a.tile_rows = rows_, a.items = static_cast<int>(items_), a.turns = turns_;
    a.parts = static_cast<int>(parts_), a.part_rows = part_rows_;
    out->splits = weight_ ? static_cast<int>(item_blocks_) : 1;
    out->details = {{{"tiles", tiles_}, {"tile_rows", rows_}, {"tile_columns", v_.columns()}, {"block_items", block_items()}}};
    out->warps = kStencilThreads / 32, out->shared_bytes = shared_, out->blocks_per_sm = resident_;
    out->blocks = blocks(), out->cycles = cycles();
    out->spill_rows = weight_ ? -1 : 0, out->spill_columns = weight_ ? -1 : v_.taps - a.kw;
    out->workspace_bytes = out->splits > 1 ? workspace() : 0;
  }

 private:
  int lanes() const { return 1 << log2_; }
  int block_items() const { return kStencilThreads >> log2_; }
  int64_t blocks() const { return channel_groups_ * item_blocks_ * parts_; }
  int64_t workspace() const { return item_blocks_ * p_.c * (p_.kh * p_.kw + 1) * 4; }
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

  Work block_work() const {
    const int taps = v_.taps, halo = taps / 2, met = weight_ ? part_rows_ : static_cast<int>(p_.kh), steps = rows_ + met - 1;
    // Input rows inside the image and the output rows that they meet, of the average tile.
    const bool alike = p_.n * strips_ >= block_items();  // else warps of several tiles meet rows outside as well
    double meetings = 0, inside = 0;
    for (int64_t tile = 0; tile < tiles_; tile += std::max<int64_t>(1, tiles_ / 16)) {
      const double times = static_cast<double>(std::min(std::max<int64_t>(1, tiles_ / 16), tiles_ - tile)) / tiles_;
      const int64_t low = p_.pad_top - tile * rows_, high = low + p_.h;  // the steps in the image
      inside += times * static_cast<double>(std::max<int64_t>(0, std::min<int64_t>(steps, high) - std::max<int64_t>(0, low)));
      meetings += times * (alike ? pairs_between(rows_, met, low, high) : static_cast<double>(rows_) * met);
    }
    if (weight_) meetings *= static_cast<double>(p_.kh) / static_cast<double>(parts_ * part_rows_);  // parts have fewer rows
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
               steps * pieces + rows_ * (kLoadIssue * out_accesses + v_.columns() * v_.channels());
      l1 += rows_ * out_accesses * lines(), shared += 4 * pieces * (meetings + steps);
    } else {
      const double quads = stencil_filter_row(taps, v_.channels()) / 4;
      issue += meetings * (per_row + kJoinIssue + quads) +
               rows_ * (kLoadIssue * out_accesses + kOutputIssue * v_.columns() * v_.channels());
      l1 += rows_ * out_accesses * lines(), shared += meetings * quads * std::min(4., lanes() / 2.);
    }
    Work w;
    w.issue = turns_ * issue;  // a block's 4 warps on the SM's 4 schedulers
    w.l1 = turns_ * warps * (l1 + shared);
    // what crosses from L2 to the SM: rows of the halo again, and whole sectors
    const double sectors = v_.last ? std::max(1., 32. / (lanes() * v_.channels() * size())) : 1;
    const double elements = static_cast<double>(kStencilThreads) * v_.columns() * v_.channels() * size();
    w.l2 = turns_ * elements * sectors * (inside + rows_) / kL2Bytes;
    w.latency = turns_ * (steps + 1) * kRowLatency;
    const double filter = static_cast<double>(lanes()) * v_.channels() * taps * taps;
    if (weight_) {
      const double sums = static_cast<double>(v_.rows * taps + 1) * v_.channels();
      w.issue += sums * (2. * (5 - log2_) + 1) + sums * lanes() / 32 * 6;
    } else {
      w.issue += filter / kStencilThreads * 30;
      w.l2 += filter * size() / kL2Bytes;
    }
    return w;
  }

  const Problem& p_;
  const DeviceLimits& limits_;
  const StencilVariant& v_;
  bool weight_;
  int rows_, log2_, turns_, shared_, resident_, part_rows_;
  int64_t strips_, tiles_, items_, channel_groups_, item_blocks_, parts_;
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
  const auto keep = [&](const Candidate& candidate) {
    if (!candidate.runs() || (found && candidate.cycles() >= best->cycles)) return;
    candidate.fill(left, pad_left, best);
    found = true;
  };
  for (int64_t parts = 1, last = 0; last != 1; parts *= 2) {
    const int rows = static_cast<int>(std::max<int64_t>(1, ceil_div(p.ho, parts)));
    if (rows != last)
      for (int log2 = 0; log2 <= 5 && (1 << log2) < 2 * ceil_div(p.c, v.channels()); ++log2) {
        const int64_t all = ceil_div(p.n * ceil_div(p.ho, rows) * ceil_div(p.wo, v.columns()), kStencilThreads >> log2);
        for (int64_t turns = 1; turns <= (weight ? std::min<int64_t>(all, 4096) : 1); turns += (turns + 1) / 2)
          keep(Candidate(p, limits, v, rows, log2, static_cast<int>(turns)));
        if (weight && all <= 4096) keep(Candidate(p, limits, v, rows, log2, static_cast<int>(all)));
      }
    last = rows;
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
