#include "plan.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "../../integers.h"
#include "../family.h"
#include "../model.h"
#include "variants.h"
#include "work.h"

namespace replknet_ext::cuda {
namespace {

using Tile = FmaTileShape;

int log2_of(int v) { return v <= 1 ? 0 : 1 + log2_of(v / 2); }

// Instructions beside the multiply-adds, counted in the compiled kernels; cycles of rounds and launches are guesses.
constexpr double kRoundCycles = 1200;   // latency of a load and two barriers, when nothing hides them
constexpr double kWarpRate = 0.7;       // instructions per cycle of a warp that has its scheduler to itself
constexpr double kLoadIssue = 10;       // instructions for every 32 elements that are loaded

// Elements of a plane, padded so that 8 neighbouring lanes, planes first, read different banks.
int64_t padded(int64_t elements, int planes) {
  int64_t quads = (elements + 3) / 4;
  const int wanted = planes >= 8 ? 1 : 8 / planes, period = planes >= 8 ? 2 : 8;
  while (planes > 1 && quads % period != wanted % period) ++quads;
  return 4 * quads;
}

class Candidate {
 public:
  Candidate(const Problem& p, const DeviceLimits& limits, const FmaVariant& v, const FmaShape& s, Tile t, FmaWork* work)
      : p_(p), limits_(limits), v_(v), s_(s), t_(t), work_(work), weight_(p.pass == Pass::bwd_weight) {
    planes_ = t.channels * t.images;
    row_tiles_ = ceil_div(s.row_groups, t.rows), column_tiles_ = ceil_div(s.column_groups, t.columns);
    parts_down_ = ceil_div(s.fh, t.part_rows), parts_along_ = ceil_div(s.chunks, t.part_chunks);
    item_warps_ = static_cast<int>((static_cast<int64_t>(t.columns) * t.merge * planes_ + 31) / 32);
    items_ = static_cast<int64_t>(ceil_div(t.rows, t.merge)) * item_warps_;
    slice_rows_ = ceil_div(t.part_rows, t.slices), slices_ = ceil_div(t.part_rows, slice_rows_);
    warps_ = static_cast<int>(std::min<int64_t>(items_ * slices_, v.warps));
    const int spread = (t.merge - 1) * v.rows;
    const int64_t in_rows =
        std::min<int64_t>(p.h + 2 * spread, static_cast<int64_t>(t.rows) * v.rows + t.part_rows - 1);
    const bool along = column_tiles_ == 1 && parts_along_ == 1, shares = along && s.shares_zeros;
    const int quads = std::min(s.windows, t.columns + t.part_chunks - 1) + 1;
    in_rows_ = static_cast<int>(in_rows);
    in_pitch_ = 4 * (shares ? quads - 1 : quads), in_tail_ = shares ? 4 : 0;
    in_plane_ = padded(in_rows * in_pitch_ + in_tail_, planes_);
    f_pitch_ = 4 * t.part_chunks;
    const int filters = weight_ ? planes_ : t.channels;
    f_plane_ = padded(static_cast<int64_t>(t.part_rows) * f_pitch_, filters);
    const int64_t reduced = (slices_ - 1) * items_ * 4 * v.rows * 32;
    shared_ = 4 * s.elements * std::max({planes_ * in_plane_ + filters * f_plane_, reduced, int64_t{32} * warps_});
  }

  const Tile& tile() const { return t_; }
  int64_t shared() const { return shared_; }
  bool one_item_a_warp() const { return items_ * slices_ <= v_.warps; }
  bool runs() const {
    const int64_t columns = (p_.c + t_.channels - 1) / t_.channels * row_tiles_ * column_tiles_;
    return columns <= 0x7fffffff && shared_ <= limits_.shared_per_block &&
           (one_item_a_warp() || (!weight_ && parts_down_ * parts_along_ == 1));
  }

  // The model's cycles of the busiest SM; images: of a block, over all of its rounds (fwd: t.images).
  double cycles(int64_t images) {
    if (!is_counted_) block_ = work_->block(t_), is_counted_ = true;
    return cycles(images, block_.issue, block_.longest, block_.waves);
  }
  // Less than that in less time; of these, the later ones take longer and are closer.
  //   least_cycles(): of any number of images: the products of all blocks, spread over the device
  //   least_cycles(images): by the products; even_cycles(images): by all work, were it spread evenly over a block's warps
  double least_cycles() {
    if (products_ < 0) products_ = work_->products(t_);
    const double rounds = static_cast<double>(blocks_of(1)) * static_cast<double>(ceil_div(p_.n, t_.images));
    return kStartCycles + kAlmost * rounds * products_ / kMostBusy / limits_.sms;
  }
  double least_cycles(int64_t images) const { return cycles(images, products_, products_ * 4 / warps_, 0); }
  double even_cycles(int64_t images) {
    if (even_.issue < 0) even_ = work_->even_block(t_, warps_);
    return cycles(images, even_.issue, even_.longest, even_.waves);
  }

  void fill(int64_t images, FmaPlan* out) {
    const int64_t groups = (p_.n + images - 1) / images;
    out->args = {};
    FmaArgs& a = out->args;
    a.n = static_cast<int>(p_.n), a.c = static_cast<int>(p_.c);
    a.h = static_cast<int>(p_.h), a.w = static_cast<int>(p_.w);
    a.fh = s_.fh, a.fw = s_.fw, a.oh = s_.oh, a.ow = s_.ow;
    a.pad_top = static_cast<int>(p_.pad_top), a.pad_left = static_cast<int>(p_.pad_left);
    a.activation = weight_ ? 0 : static_cast<int>(p_.activation);
    a.channels_log2 = log2_of(t_.channels), a.images_log2 = log2_of(t_.images);
    a.row_groups = s_.row_groups, a.column_groups = s_.column_groups;
    a.tile_rows = t_.rows, a.tile_columns = t_.columns;
    a.column_tiles = column_tiles_, a.tiles = row_tiles_ * column_tiles_;
    a.merge = t_.merge, a.shift = s_.shift, a.chunks = s_.chunks;
    a.part_rows = t_.part_rows, a.part_chunks = t_.part_chunks;
    a.parts_down = parts_down_, a.parts_along = parts_along_;
    a.in_pitch = in_pitch_, a.in_plane = static_cast<int>(in_plane_), a.in_tail = in_tail_;
    a.f_pitch = f_pitch_, a.f_plane = static_cast<int>(f_plane_);
    const int channel_lanes = p_.channels_last ? std::min(t_.channels, 32) : 1;
    const auto lanes = [&](int pitch, int along) { return std::min(log2_of(2 * pitch - 1), log2_of(32 / along)); };
    a.channel_lanes = channel_lanes, a.lanes_log2 = lanes(in_pitch_, channel_lanes);
    a.f_channel_lanes = weight_ ? channel_lanes : 1, a.f_lanes_log2 = lanes(f_pitch_, a.f_channel_lanes);
    a.slices = slices_, a.slice_rows = slice_rows_, a.images_per_split = static_cast<int>(images);
    out->splits = groups;
    out->details = {{{"merge", t_.merge}, {"tile_rows", t_.rows * v_.rows}, {"tile_columns", t_.columns}, {"planes", planes_}}};
    out->parts = parts_down_ * parts_along_, out->warps = warps_, out->shared_bytes = static_cast<int>(shared_);
    out->blocks_per_sm = resident(), out->blocks = blocks_of(groups), out->cycles = cycles(images);
    out->workspace_bytes = weight_ && groups > 1 ? groups * (count() + p_.c) * 4 * s_.elements : 0;
  }

 private:
  double cycles(int64_t images, double block_issue, double block_longest, double block_waves) const {
    const int64_t groups = (p_.n + images - 1) / images, blocks = blocks_of(groups);
    const double image_rounds = static_cast<double>((images + t_.images - 1) / t_.images);
    const double rounds = image_rounds * parts_down_ * parts_along_;
    const double loaded = rounds * (static_cast<double>(planes_) * in_rows_ * in_pitch_ +
                                    static_cast<double>(weight_ ? planes_ : t_.channels) * t_.part_rows * f_pitch_);
    const double issue = block_issue * image_rounds + loaded / 32 * kLoadIssue / 4;
    // channels_last: a sector of 32 bytes is read for the block's channels of a pixel
    const double sectors = p_.channels_last ? std::max(1., 8. / (t_.channels * s_.elements)) : 1.;
    const double outputs = 4. * t_.rows * v_.rows * t_.columns * t_.channels * (weight_ ? 1 : t_.images);
    const double load = 4. * s_.elements * loaded * sectors / kGlobalBytes;
    const double stores = 4. * s_.elements * outputs * (weight_ ? 1. : sectors) / kGlobalBytes;
    const double waves = block_waves * image_rounds, longest = block_longest * image_rounds / kWarpRate;
    const double first = load / rounds, others = (rounds - 1) * (kRoundCycles + first);  // loads that the block waits for
    const auto side_by_side = [&](int n) {
      return std::max({n * issue / busy(n * warps_), n * waves, longest}) + (n > 1 ? kExposed : 1) * others;
    };
    const BlockCycles block{first, kStartCycles + first, load + stores, kExposed * stores};
    const double all = sm_cycles(Waves(blocks, resident(), limits_.sms), block, side_by_side);
    const bool in_splits = weight_ && groups > 1;
    return all + (in_splits ? second_launch_cycles(limits_, 4. * s_.elements * static_cast<double>(count() * groups)) : 0);
  }

  int resident() const { return resident_blocks(limits_, warps_, shared_, v_.warps * v_.blocks); }
  int64_t blocks_of(int64_t groups) const {
    return (p_.c + t_.channels - 1) / t_.channels * row_tiles_ * column_tiles_ * groups;
  }
  int64_t count() const { return p_.c * s_.oh * s_.ow; }

  const Problem& p_;
  const DeviceLimits& limits_;
  const FmaVariant& v_;
  const FmaShape& s_;
  Tile t_;
  FmaWork* work_;
  bool weight_;
  int planes_, row_tiles_, column_tiles_, parts_down_, parts_along_, item_warps_, warps_, slices_, slice_rows_;
  int in_rows_, in_pitch_, in_tail_, f_pitch_;
  int64_t items_, in_plane_, f_plane_, shared_;
  double products_ = -1;
  bool is_counted_ = false;
  FmaWork::Block block_, even_{-1};
};

// Calls use(size) for the whole extent, its halves, quarters ... down to 1.
template <class Use>
void each_split(int extent, const Use& use) {
  for (int parts = 1, last = 0; last != 1; parts *= 2) {
    const int size = std::max(1, ceil_div(extent, parts));
    if (size != last) use(size);
    last = size;
  }
}

// Less than the cycles of any tile: all products, spread over the device. 0 for paddings that crop or that exceed the filter,
// as of many tiles FmaWork looks at the first, the middle and the last, and there the middle may have the fewest products.
double least_cycles(const Problem& p, const DeviceLimits& limits, const FmaVariant& v) {
  const auto same = [](int64_t in, int64_t out, int64_t k, int64_t pad) {
    const int64_t after = out + k - 1 - in - pad;
    return std::min(pad, after) >= 0 && std::max(pad, after) < k;
  };
  if (!same(p.h, p.ho, p.kh, p.pad_top) || !same(p.w, p.wo, p.kw, p.pad_left)) return 0;
  const double products = pairs_between(p.kh, p.ho, p.pad_top, p.pad_top + p.h) *
                          pairs_between(p.kw, p.wo, p.pad_left, p.pad_left + p.w);
  const double issue = products * static_cast<double>(p.n) * static_cast<double>(p.c) * (v.f64 ? 2 : 1) / kFmaPerCycle;
  return kStartCycles + 0.8 * issue / kMostBusy / limits.sms;
}

// strict: only tiles that use memory well; not every problem has one.
bool plan_variant(const Problem& p, const DeviceLimits& limits, const FmaVariant& v, bool strict, FmaPlan* best) {
  if (least_cycles(p, limits, v) >= best->cycles) return false;
  const FmaShape s = fma_shape_of(p, v);
  FmaWork work(p, v, s);
  const bool weight = p.pass == Pass::bwd_weight;
  bool found = false;
  std::vector<Candidate> candidates;
  // What Candidate would say with more arithmetic, for the many tiles that can't run.
  const auto one_item_a_warp = [&](const Tile& t) {
    const int slices = ceil_div(t.part_rows, ceil_div(t.part_rows, t.slices));
    const int64_t warps = ceil_div(int64_t{t.columns} * t.merge * t.channels * t.images, 32);
    return ceil_div(t.rows, t.merge) * warps * slices <= v.warps;
  };
  const auto too_large = [&](const Tile& t) {
    const int64_t rows = std::min<int64_t>(p.h + 2 * (t.merge - 1) * v.rows, int64_t{t.rows} * v.rows + t.part_rows - 1);
    const int64_t quads = std::min(s.windows, t.columns + t.part_chunks - 1);
    return 16. * s.elements * t.channels * t.images * static_cast<double>(rows * quads) > limits.shared_per_block;
  };
  const auto consider = [&](const Tile& t) {
    if (too_large(t)) return false;
    Candidate candidate(p, limits, v, s, t, &work);
    if (!candidate.runs()) return false;
    found = true;
    if (candidate.least_cycles() < best->cycles) candidates.push_back(candidate);
    return true;
  };
  // The filter in parts: as few as fit; of a gradient's many rows, also smaller ones.
  const auto in_parts = [&](Tile t) {
    const bool one_item = one_item_a_warp(t);
    if (!one_item && weight) return;
    if (consider(t) && !(weight && t.part_rows >= 12)) return;
    if (!one_item) return;
    Tile least = t;  // shared memory for no part of the filter, however small
    least.part_rows = least.part_chunks = 1;
    if (too_large(least) || Candidate(p, limits, v, s, least, &work).shared() > limits.shared_per_block) return;
    bool fits = false;
    for (int tries = 0; t.part_rows > 1 && (!fits || (weight && tries < 3 && t.part_rows >= 12)); ++tries) {
      t.part_rows = ceil_div(t.part_rows, 2);
      fits = consider(t) || fits;
    }
    while (!fits && t.part_chunks > 1) {
      t.part_chunks = ceil_div(t.part_chunks, 2);
      fits = consider(t);
    }
  };
  const int most_planes = weight ? 32 : 64;
  for (int channels = 1; channels <= 32 && channels < 2 * p.c; channels *= 2)
    for (int images = 1; images * channels <= most_planes && images < 2 * p.n; images *= 2) {
      // of channels and images, those that are neighbours in memory or share a filter come first
      const bool first_used = p.channels_last ? channels >= 8 || channels >= p.c : images >= 8 || images >= p.n;
      const int second = p.channels_last ? images : channels;
      if (strict && (p.channels_last ? !first_used : second > 1 && !first_used)) continue;
      each_split(s.row_groups, [&](int rows) {
        each_split(s.column_groups, [&](int columns) {
          if (weight && strict && columns < s.column_groups && columns > 16) return;
          if (weight && strict && columns < std::min(s.column_groups, 8)) return;
          const int slots = columns * channels * images;
          for (int merge = 1; merge == 1 || (merge < 2 * rows && slots * (merge / 2) < 32); merge *= 2) {
            Tile t{channels, images, rows, columns, merge, s.fh, s.chunks, 1};
            in_parts(t);
            if (!weight) continue;
            const int items = ceil_div(rows, merge) * ceil_div(slots * merge, 32);
            for (int slices = v.warps / items, tries = 0; slices > 1 && tries < 2; slices /= 2, ++tries) {
              t.slices = std::min(slices, std::max(1, s.fh / v.rows));
              if (t.slices > 1) in_parts(t);
            }
          }
        });
      });
    }
  if (candidates.empty()) return found;
  // Calls use(images) for those of a block.
  const auto each_number_of_images = [&](const Candidate& candidate, const auto& use) {
    const int images = candidate.tile().images;
    const int64_t rounds = ceil_div(p.n, images);
    for (int64_t splits = 1; splits <= (weight ? std::min<int64_t>(rounds, 256) : 1); splits += (splits + 1) / 2)
      use(weight ? ceil_div(rounds, splits) * images : images);
  };
  // The most promising one first: its cycles are a bound by which most others need no FmaWork::block.
  Candidate& first = *std::min_element(candidates.begin(), candidates.end(),
                                       [](Candidate& a, Candidate& b) { return a.least_cycles() < b.least_cycles(); });
  const auto beats = [&](Candidate& candidate, int64_t images) {
    return candidate.least_cycles(images) < best->cycles && candidate.even_cycles(images) < best->cycles &&
           candidate.cycles(images) < best->cycles;
  };
  each_number_of_images(first, [&](int64_t images) {
    constexpr double kInfinity = std::numeric_limits<double>::infinity();
    if (beats(first, images)) best->cycles = std::nextafter(first.cycles(images), kInfinity);
  });
  for (Candidate& candidate : candidates)
    if (candidate.least_cycles() < best->cycles)
      each_number_of_images(candidate, [&](int64_t images) {
        if (beats(candidate, images)) candidate.fill(images, best);
      });
  return found;
}

class Planner {
 public:
  using Plan = FmaPlan;

  Planner(const Problem& p, const DeviceLimits& limits) : p_(p), limits_(limits) {}

  static int count(Pass) { return kFmaCount; }
  static const char* name(Pass pass, int variant) {
    return pass == Pass::bwd_weight ? kFma[variant].weight : kFma[variant].fwd;
  }
  const char* refuse() const {
    if (p_.algorithm == Algorithm::fft) return "computes directly, not by FFT";
    if (p_.dtype != DType::f32 && p_.dtype != DType::f64) return "only float32 and float64 run on the FMA pipe here";
    return nullptr;
  }
  const char* refuse(int variant) const {
    return kFma[variant].f64 == (p_.dtype == DType::f64) ? nullptr : "the variant is for another dtype";
  }
  bool plan(int variant, FmaPlan* best) const {
    const FmaVariant& v = kFma[variant];
    return plan_variant(p_, limits_, v, true, best) || plan_variant(p_, limits_, v, false, best);
  }
  const char* none(int) const { return "the grid would have more than 2^31 blocks"; }

 private:
  const Problem& p_;
  const DeviceLimits& limits_;
};

}  // namespace

const Family fma_family = family_of<Planner>("fma", Candidates::most);

}  // namespace replknet_ext::cuda
