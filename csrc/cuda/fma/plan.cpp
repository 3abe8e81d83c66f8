#include "plan.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <tuple>
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
constexpr int64_t kMostSplits = 256;    // of the images of a gradient
constexpr double kLoadIssue = 10;       // instructions for every 32 elements that are loaded

// Elements of a plane, padded so that 8 neighbouring lanes, planes first, read different banks.
int64_t padded(int64_t elements, int planes) {
  int64_t quads = ceil_div(elements, 4);
  if (planes > 1) quads += planes >= 8 ? ~quads & 1 : (8 / planes - quads) & 7;
  return 4 * quads;
}

class Candidate {
 public:
  Candidate(const Problem& p, const DeviceLimits& limits, const FmaVariant& v, const FmaShape& s, const Tile& t)
      : p_(p), limits_(limits), v_(v), s_(s), t_(t), weight_(p.pass == Pass::bwd_weight) {
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

  int64_t shared() const { return shared_; }
  bool one_item_a_warp() const { return items_ * slices_ <= v_.warps; }
  bool runs() const {
    const int64_t columns = (p_.c + t_.channels - 1) / t_.channels * row_tiles_ * column_tiles_;
    return columns <= 0x7fffffff && shared_ <= limits_.shared_per_block &&
           (one_item_a_warp() || (!weight_ && parts_down_ * parts_along_ == 1));
  }

  // The model's cycles of the busiest SM; images: of a block, over all of its rounds (fwd: t.images).
  double cycles(int64_t images, const FmaWork::Block& work) const {
    const int64_t groups = (p_.n + images - 1) / images, blocks = blocks_of(groups);
    const double image_rounds = static_cast<double>((images + t_.images - 1) / t_.images);
    const double rounds = image_rounds * parts_down_ * parts_along_, load = load_cycles();
    const double issue = image_rounds * (work.issue + load_issue());
    const double outputs = 4. * t_.rows * v_.rows * t_.columns * t_.channels * (weight_ ? 1 : t_.images);
    const double stores = 4. * s_.elements * outputs * (weight_ ? 1. : sectors()) / kGlobalBytes;
    const double waves = work.waves * image_rounds, longest = work.longest * image_rounds / kWarpRate;
    const double others = (rounds - 1) * (kRoundCycles + load);  // loads that the block waits for
    const auto side_by_side = [&](int n) {
      return std::max({n * issue / busy(n * warps_), n * waves, longest}) + (n > 1 ? kExposed : 1) * others;
    };
    const BlockCycles block{load, kStartCycles + load, rounds * load + stores, kExposed * stores};
    const double all = sm_cycles(Waves(blocks, resident(), limits_.sms), block, side_by_side);
    const bool in_splits = weight_ && groups > 1;
    return all + (in_splits ? second_launch_cycles(limits_, 4. * s_.elements * static_cast<double>(count() * groups)) : 0);
  }

  // Less than that of any number of images: the instructions and the waits, or the loads, of all blocks, spread over the
  // device.
  double least_cycles(const FmaWork::Block& work) const {
    const int64_t image_rounds = ceil_div(p_.n, t_.images), rounds = image_rounds * parts_down_ * parts_along_;
    const double waits =
        static_cast<double>(rounds - std::min(image_rounds, kMostSplits)) * (kRoundCycles + load_cycles());
    const double issue = static_cast<double>(image_rounds) * (work.issue + load_issue()) / kMostBusy;
    const double all = std::max(issue + waits / resident() * (resident() > 1 ? kExposed : 1),
                                static_cast<double>(rounds) * load_cycles());
    return kStartCycles + kAlmost * static_cast<double>(blocks_of(1)) * all / limits_.sms;
  }

  void fill(int64_t images, double cycles, FmaPlan* out) const {
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
    out->blocks_per_sm = resident(), out->blocks = blocks_of(groups), out->cycles = cycles;
    out->workspace_bytes = weight_ && groups > 1 ? groups * (count() + p_.c) * 4 * s_.elements : 0;
  }

 private:
  // channels_last: a sector of 32 bytes is read for the block's channels of a pixel
  double sectors() const { return p_.channels_last ? std::max(1., 8. / (t_.channels * s_.elements)) : 1.; }
  // Elements that a round loads; cycles for that, and instructions of a scheduler for all parts.
  double loaded() const {
    return static_cast<double>(planes_) * in_rows_ * in_pitch_ +
           static_cast<double>(weight_ ? planes_ : t_.channels) * t_.part_rows * f_pitch_;
  }
  double load_cycles() const { return 4. * s_.elements * loaded() * sectors() / kGlobalBytes; }
  double load_issue() const { return loaded() / 32 * kLoadIssue / 4 * parts_down_ * parts_along_; }

  int resident() const { return resident_blocks(limits_, warps_, shared_, v_.warps * v_.blocks); }
  int64_t blocks_of(int64_t groups) const {
    return (p_.c + t_.channels - 1) / t_.channels * row_tiles_ * column_tiles_ * groups;
  }
  int64_t count() const { return p_.c * s_.oh * s_.ow; }

  const Problem& p_;
  const DeviceLimits& limits_;
  const FmaVariant& v_;
  const FmaShape& s_;
  const Tile& t_;
  bool weight_;
  int planes_, row_tiles_, column_tiles_, parts_down_, parts_along_, item_warps_, warps_, slices_, slice_rows_;
  int in_rows_, in_pitch_, in_tail_, f_pitch_;
  int64_t items_, in_plane_, f_plane_, shared_;
};

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

// The search for a variant's fastest tile.
class Search {
 public:
  Search(const Problem& p, const DeviceLimits& limits, const FmaVariant& v, FmaPlan* best)
      : p_(p), limits_(limits), v_(v), s_(fma_shape_of(p, v)), work_(p, v, s_), weight_(p.pass == Pass::bwd_weight),
        most_quads_(limits.shared_per_block / (16 * s_.elements)), best_(best) {}

  // Of all choices the most promising one is looked at first, until none has a bound below what the best tile takes: a few
  // tiles are counted in full, and only a part of all is listed. strict: only tiles that use memory well; not every
  // problem has one. False: no tile runs.
  bool run(bool strict) {
    strict_ = strict;
    add_columns();
    while (!choices_.empty() && (!found_ || choices_.front().least < best_->cycles)) {
      std::pop_heap(choices_.begin(), choices_.end());
      const Choice choice = choices_.back();
      choices_.pop_back();
      if (choice.is_tile) count(choice);
      else add_tiles(choice.tile);
    }
    return found_;
  }

 private:
  struct Choice {
    double least;  // less than its cycles
    bool is_tile;  // else it stands for all tiles of its columns, merge and planes, and of its rows and fewer
    Tile tile;
    FmaWork::Block work;  // less than a tile's
    bool operator<(const Choice& other) const { return least > other.least; }  // of a heap, the least comes first
  };

  void add(const Choice& choice) {
    if (choice.least >= best_->cycles && found_) return;
    choices_.push_back(choice);
    std::push_heap(choices_.begin(), choices_.end());
  }

  // What Candidate would say with more arithmetic, for the many tiles that can't run.
  bool one_item_a_warp(const Tile& t) const {
    const int slices = ceil_div(t.part_rows, ceil_div(t.part_rows, t.slices));
    const int64_t warps = ceil_div(int64_t{t.columns} * t.merge * t.channels * t.images, 32);
    return ceil_div(t.rows, t.merge) * warps * slices <= v_.warps;
  }
  bool too_large(const Tile& t, int part_rows, int part_chunks) const {
    const int64_t spread = (t.merge - 1) * v_.rows;
    const int64_t rows = std::min<int64_t>(p_.h + 2 * spread, int64_t{t.rows} * v_.rows + part_rows - 1);
    const int64_t quads = std::min(s_.windows, t.columns + part_chunks - 1);
    return rows * quads * t.channels * t.images > most_quads_;
  }

  void add_columns() {
    const int most_planes = weight_ ? 32 : 64;
    for (int planes = 1; planes <= most_planes && planes < 4 * p_.n * p_.c; planes *= 2)
      fma_each_split(s_.column_groups, [&](int columns) {
        if (weight_ && strict_ && columns < s_.column_groups && columns > 16) return;
        if (weight_ && strict_ && columns < std::min(s_.column_groups, 8)) return;
        const int slots = columns * planes;
        for (int merge = 1; merge == 1 || (merge < 2 * s_.row_groups && slots * (merge / 2) < 32); merge *= 2) {
          Tile t{1, planes, s_.row_groups, columns, merge, s_.fh, s_.chunks, 1};
          while (t.rows > 1 && too_large(t, 1, 1)) t.rows = ceil_div(t.rows, 2);
          if (too_large(t, 1, 1)) break;
          add({least_of_all(t), false, t, {}});
        }
      });
  }

  // Less than the cycles of any tile of those columns, merge and planes: instructions, or loads and stores, spread over
  // the device.
  double least_of_all(const Tile& t) {
    const double issue = work_.least_of_all(t, work_.along(t)) / 4 / kMostBusy / (t.channels * t.images);
    const int column_tiles = ceil_div(s_.column_groups, t.columns);
    const double rows = static_cast<double>(std::min<int64_t>(p_.h, int64_t{t.rows} * v_.rows + s_.fh - 1));
    const int quads = std::min(s_.windows, t.columns + s_.chunks - 1) + (column_tiles > 1);
    const double loaded = rows * s_.row_groups / t.rows * quads;
    const double other = weight_ ? static_cast<double>(s_.fh) * s_.chunks : static_cast<double>(s_.oh) * t.columns;
    const double memory = column_tiles * 16. * s_.elements * (loaded + other) / kGlobalBytes;
    return kStartCycles + kAlmost * static_cast<double>(p_.n * p_.c) * std::max(issue, memory) / limits_.sms;
  }

  void add_tiles(Tile t) {
    const FmaWork::Along along = work_.along(t);
    const int planes = t.images;
    fma_each_split(s_.row_groups, [&](int rows) {
      if (rows > t.rows || (t.merge > 1 && t.merge >= 2 * rows)) return;
      Tile some = t;
      some.rows = rows;
      for (some.channels = 1; some.channels <= std::min(planes, 32) && some.channels < 2 * p_.c; some.channels *= 2) {
        some.images = planes / some.channels, some.slices = 1;
        if (some.images >= 2 * p_.n || !allowed(some.channels, some.images)) continue;
        add_parts(some, along);
        if (!weight_) continue;
        const int items = ceil_div(rows, t.merge) * along.warps;
        for (int slices = v_.warps / items, tries = 0; slices > 1 && tries < 2; slices /= 2, ++tries) {
          some.slices = std::min(slices, std::max(1, s_.fh / v_.rows));
          if (some.slices > 1) add_parts(some, along);
        }
      }
    });
  }

  // Of channels and images, those that are neighbours in memory or share a filter come first.
  bool allowed(int channels, int images) const {
    const bool first_used = p_.channels_last ? channels >= 8 || channels >= p_.c : images >= 8 || images >= p_.n;
    return !strict_ || first_used || (!p_.channels_last && channels == 1);
  }

  // The filter in parts: as few as fit; of a gradient's many rows, also smaller ones.
  void add_parts(Tile t, const FmaWork::Along& along) {
    const bool one_item = one_item_a_warp(t);
    if (!one_item && weight_) return;
    if (add_tile(t, along) && !(weight_ && t.part_rows >= 12)) return;
    if (!one_item) return;
    Tile least = t;  // shared memory for no part of the filter, however small
    least.part_rows = least.part_chunks = 1;
    if (Candidate(p_, limits_, v_, s_, least).shared() > limits_.shared_per_block) return;
    bool fits = false;
    for (int tries = 0; t.part_rows > 1 && (!fits || (weight_ && tries < 3 && t.part_rows >= 12)); ++tries) {
      t.part_rows = ceil_div(t.part_rows, 2);
      fits = add_tile(t, along) || fits;
    }
    while (!fits && t.part_chunks > 1) {
      t.part_chunks = ceil_div(t.part_chunks, 2);
      fits = add_tile(t, along);
    }
  }

  bool add_tile(const Tile& t, const FmaWork::Along& along) {
    if (too_large(t, t.part_rows, t.part_chunks)) return false;
    const Candidate candidate(p_, limits_, v_, s_, t);
    if (!candidate.runs()) return false;
    found_ = true;
    const FmaWork::Block least = work_.least(t, along);
    add({weight_ ? candidate.least_cycles(least) : kAlmost * candidate.cycles(t.images, least), true, t, least});
    return true;
  }

  // Of two tiles that take the same time, so that a plan does not depend on the order of the search.
  static bool precedes(const Tile& a, const Tile& b) {
    const auto order = [](const Tile& t) {
      return std::make_tuple(t.channels, t.images, -t.rows, -t.columns, t.merge, t.slices > 1, -t.slices, -t.part_rows,
                             -t.part_chunks);
    };
    return order(a) < order(b);
  }

  void count(const Choice& choice) {
    const Candidate candidate(p_, limits_, v_, s_, choice.tile);
    const int images_at_once = choice.tile.images;
    const int64_t rounds = ceil_div(p_.n, images_at_once);
    FmaWork::Block counted{-1, 0, 0};
    for (int64_t splits = 1; splits <= (weight_ ? std::min(rounds, kMostSplits) : 1); splits += (splits + 1) / 2) {
      const int64_t images = weight_ ? ceil_div(rounds, splits) * images_at_once : images_at_once;
      if (candidate.cycles(images, choice.work) > best_->cycles) continue;
      if (counted.issue < 0) counted = work_.block(choice.tile);
      const double cycles = candidate.cycles(images, counted);
      const bool first_of_equals = cycles == best_->cycles && chosen_.channels > 0 && precedes(choice.tile, chosen_);
      if (cycles < best_->cycles || first_of_equals) candidate.fill(images, cycles, best_), chosen_ = choice.tile;
    }
  }

  const Problem& p_;
  const DeviceLimits& limits_;
  const FmaVariant& v_;
  const FmaShape s_;
  FmaWork work_;
  const bool weight_;
  const int64_t most_quads_;  // that fit shared memory
  FmaPlan* best_;
  Tile chosen_{};  // of *best_, if it is of this search
  bool strict_ = true, found_ = false;
  std::vector<Choice> choices_;  // a heap
};

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
    if (least_cycles(p_, limits_, v) >= best->cycles) return false;
    Search search(p_, limits_, v, best);
    return search.run(true) || search.run(false);
  }
  const char* none(int) const { return "the grid would have more than 2^31 blocks"; }

 private:
  const Problem& p_;
  const DeviceLimits& limits_;
};

}  // namespace

const Family fma_family = family_of<Planner>("fma", Candidates::most);

}  // namespace replknet_ext::cuda
