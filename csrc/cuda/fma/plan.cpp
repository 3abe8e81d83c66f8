#include "plan.h"

#include <algorithm>
#include <cmath>

#include "../../integers.h"
#include "../family.h"
#include "variants.h"
#include "../model.h"

namespace replknet_ext::cuda {
namespace {

int floor4(int v) { return v >= 0 ? v / 4 : -((3 - v) / 4); }
int log2_of(int v) { return v <= 1 ? 0 : 1 + log2_of(v / 2); }

// Instructions beside the multiply-adds, counted in the compiled kernels; cycles of rounds and launches are guesses.
constexpr double kStepIssue = 5;       // of a step of the steady loop and of its ends: loads, addresses
constexpr double kFullStepIssue = 14;  // of a full step outside it, which loads every filter row
constexpr double kEdgeStepIssue = 20;  // of an edge step: loads, bounds, loop
constexpr double kEdgeRowIssue = 4;    // of an output row in an edge step: branch, address, load
constexpr double kItemIssue = 400;      // of an item: its geometry, epilogue, stores
constexpr double kChunkIssue = 60;      // of a chunk: addresses, first filter rows
constexpr double kRoundCycles = 1200;   // latency of a load and two barriers, when nothing hides them
constexpr double kWarpRate = 0.7;       // instructions per cycle of a warp that has its scheduler to itself
constexpr double kLoadIssue = 10;       // instructions for every 32 elements that are loaded

struct Shape {  // the problem as one correlation, see FmaArgs
  int fh, fw, oh, ow;
  int row_groups, column_groups;
  int shift, chunks;
  int first_window, windows;  // the windows that meet the image
  bool shares_zeros;          // a row's last quad and the next row's first are both zeros
  int elements;               // 1, or 2 for double: relative size and price of everything
};

Shape shape_of(const Problem& p, const FmaVariant& v) {
  const bool weight = p.pass == Pass::bwd_weight;
  Shape s{};
  s.fh = static_cast<int>(weight ? p.ho : p.kh), s.fw = static_cast<int>(weight ? p.wo : p.kw);
  s.oh = static_cast<int>(weight ? p.kh : p.ho), s.ow = static_cast<int>(weight ? p.kw : p.wo);
  s.row_groups = ceil_div(s.oh, v.rows), s.column_groups = ceil_div(s.ow, 4);
  const int pad = static_cast<int>(p.pad_left), width = static_cast<int>(p.w);
  // A chunk of 3 taps comes first: then rows share their border of zeros for the paddings of the papers' filters.
  s.shift = s.fw % 4 == 3;
  s.chunks = ceil_div(s.fw + s.shift, 4);
  const int origin = -s.shift - pad;
  s.first_window = std::max(0, floor4(-6 - origin + 3));
  const int last = std::min(s.column_groups + s.chunks - 2, floor4(width - 1 - origin));
  s.windows = std::max(1, last - s.first_window + 1);
  s.shares_zeros = 4 * s.first_window + origin + 3 < 0 && 4 * (s.first_window + s.windows) + origin >= width;
  s.elements = v.f64 ? 2 : 1;
  return s;
}

struct Tile {
  int channels, images;  // powers of two
  int rows, columns;     // groups
  int merge;
  int part_rows, part_chunks;
  int slices;
};

// Elements of a plane, padded so that 8 neighbouring lanes, planes first, read different banks.
int64_t padded(int64_t elements, int planes) {
  int64_t quads = (elements + 3) / 4;
  const int wanted = planes >= 8 ? 1 : 8 / planes, period = planes >= 8 ? 2 : 8;
  while (planes > 1 && quads % period != wanted % period) ++quads;
  return 4 * quads;
}

class Candidate {
 public:
  Candidate(const Problem& p, const DeviceLimits& limits, const FmaVariant& v, const Shape& s, Tile t)
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
  double cycles(int64_t images) {
    if (issue_ < 0) block_work();
    return cycles(images, issue_, longest_, waves_);
  }
  // Less than that, without block_work, which takes most of a plan's time: the block's products alone. `products`: of a
  // plane, pairs of a tap and an output that meet the input.
  double least_cycles(int64_t images, double products) const {
    // block_work counts some rows and tiles for all: of a gradient's, few of which meet the input, perhaps those that do not
    const double counted = weight_ && (row_tiles_ > 2 || column_tiles_ > 2) ? 0 : 0.8;
    const double issue = counted * products * planes_ * s_.elements / (128. * row_tiles_ * column_tiles_);
    return cycles(images, issue, issue * 4 / warps_, 0);
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

  struct Sum {
    double issue, steps, filter_loads;
  };

  // What FmaTile::part does for a chunk of that many taps.
  Sum sum_chunk(int k, int k_end, int f_rows, int rows, int taps, bool whole) const {
    const int r = v_.rows, last = r - 1;
    const double fma = 4. * taps;
    Sum s{0, static_cast<double>(k_end - k), 0};
    const auto edge = [&](int stop) {
      for (; k < stop; ++k) {
        const int met = std::max(0, std::min(rows - 1, k) - std::max(0, k - f_rows + 1) + 1);
        s.issue += kEdgeStepIssue + met * (fma + kEdgeRowIssue) + (r - met), s.filter_loads += met;
      }
    };
    const bool rising = whole && k == 0 && std::min(f_rows, k_end) >= last;
    if (rising) s.issue += last * (kStepIssue + fma * r / 2), s.filter_loads += last, k = last;
    else edge(std::min(k_end, last));
    const int full_end = std::min(k_end, f_rows), steps = std::max(0, full_end - std::max(k, last));
    const int steady = whole ? steps / r * r : 0;
    s.issue += steady * (fma * r + kStepIssue) + (steps - steady) * (fma * r + kFullStepIssue);
    s.filter_loads += steady + (steps - steady) * r;
    k += steps;
    if (whole && k == f_rows && k_end == f_rows + last && f_rows >= last)
      s.issue += last * (kStepIssue + fma * r / 2), s.filter_loads += last;
    else edge(k_end);
    return s;
  }

  // Calls use(index, times) for the first, the middle and the last of n tiles.
  template <class Use>
  static void each_tile(int n, const Use& use) {
    use(0, 1);
    if (n > 2) use(n / 2, n - 2);
    if (n > 1) use(n - 1, 1);
  }

  // The average block: instructions of its busiest scheduler, of its longest item, shared memory cycles.
  void block_work() {
    issue_ = longest_ = waves_ = 0;
    each_tile(row_tiles_, [&](int ty, int times_y) {
      each_tile(column_tiles_, [&](int tx, int times_x) {
        double own = 0, own_longest = 0, own_waves = 0;
        const int sample = std::max(1, parts_down_ / 8);
        for (int down = 0; down < parts_down_; down += sample) {
          const double weight = std::min(sample, parts_down_ - down);
          double part = 0, part_longest = 0, part_waves = 0;
          part_work(ty, tx, down, &part, &part_longest, &part_waves);
          own += weight * part, own_longest += weight * part_longest, own_waves += weight * part_waves;
        }
        const double share = static_cast<double>(times_y) * times_x / (static_cast<double>(row_tiles_) * column_tiles_);
        issue_ += share * own, longest_ += share * own_longest, waves_ += share * own_waves;
      });
    });
  }

  void part_work(int ty, int tx, int down, double* issue, double* longest, double* waves) const {
    const int groups_y = std::min(t_.rows, s_.row_groups - ty * t_.rows);
    const int groups_x = std::min(t_.columns, s_.column_groups - tx * t_.columns);
    const int part_rows = std::min(t_.part_rows, s_.fh - down * t_.part_rows), merged = ceil_div(groups_y, t_.merge);
    const int subs = static_cast<int>((static_cast<int64_t>(groups_x) * t_.merge * planes_ + 31) / 32);
    const int last_window = s_.first_window + s_.windows - 1;
    const double filter_wave = weight_ || t_.channels > 1 ? 4 : 2;  // shared memory cycles; fewer if a warp shares it
    double scheduler[4] = {}, shared = 0, most = 0;
    const int counted = std::min(merged, 64);
    for (int i = 0; i < counted * slices_; ++i) {
      const int skipped = i / counted * slice_rows_, f_rows = std::min(slice_rows_, part_rows - skipped);
      const int above = static_cast<int>(p_.pad_top) - down * t_.part_rows - skipped;
      if (f_rows <= 0) break;
      const int group = static_cast<int>(static_cast<int64_t>(i % counted) * merged / counted) * t_.merge;
      const int group_high = std::min(groups_y - 1, group + t_.merge - 1);
      const int y0 = (ty * t_.rows + group) * v_.rows, y_last = (ty * t_.rows + group_high) * v_.rows;
      const int rows = group == group_high ? std::min(v_.rows, s_.oh - y0) : v_.rows;
      const int k_low = std::max(0, above - y_last);
      const int k_end = std::min(f_rows + rows - 1, static_cast<int>(p_.h) + above - y0);
      if (k_low >= k_end) continue;
      const Sum whole = sum_chunk(k_low, k_end, f_rows, rows, 4, true);
      const int sample = std::max(1, subs / 512) | 1;  // odd, so that all schedulers have some
      for (int sub = 0; sub < subs; sub += sample) {
        const int64_t low = int64_t{sub} * 32 / planes_, high = (int64_t{sub} * 32 + 31) / planes_;
        const bool one_row = low / groups_x == high / groups_x;
        const int column_low = tx * t_.columns + (one_row ? static_cast<int>(low % groups_x) : 0);
        const int column_high = tx * t_.columns + (one_row ? static_cast<int>(high % groups_x) : groups_x - 1);
        const int t_low = std::max(0, s_.first_window - column_high);
        const int t_high = std::min(s_.chunks - 1, last_window - column_low);
        if (t_low > t_high) continue;
        int chunks = t_high - t_low + 1;
        double item = kItemIssue / (parts_down_ * parts_along_), item_waves = 0;
        const auto count = [&](const Sum& sum, int times) {
          item += times * (sum.issue * s_.elements + kChunkIssue);
          item_waves += times * s_.elements * (8. * sum.steps + filter_wave * sum.filter_loads);
        };
        const int tail = s_.fw + s_.shift - 4 * (s_.chunks - 1);
        if (t_high == s_.chunks - 1 && tail < 4) count(sum_chunk(k_low, k_end, f_rows, rows, tail, false), 1), --chunks;
        if (t_low == 0 && s_.shift) count(sum_chunk(k_low, k_end, f_rows, rows, 3, !v_.f64), 1), --chunks;
        count(whole, chunks);
        const double times = static_cast<double>(merged) / counted * std::min(sample, subs - sub);
        scheduler[(static_cast<int64_t>(i) * subs + sub) % warps_ % 4] += item * times;
        shared += item_waves * times, most = std::max(most, item);
      }
    }
    *issue = *std::max_element(scheduler, scheduler + 4), *longest = most, *waves = shared;
  }

  const Problem& p_;
  const DeviceLimits& limits_;
  const FmaVariant& v_;
  const Shape& s_;
  Tile t_;
  bool weight_;
  int planes_, row_tiles_, column_tiles_, parts_down_, parts_along_, item_warps_, warps_, slices_, slice_rows_;
  int in_rows_, in_pitch_, in_tail_, f_pitch_;
  int64_t items_, in_plane_, f_plane_, shared_;
  double issue_ = -1, longest_, waves_;  // of a block and a round of its images: block_work
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

// strict: only tiles that use memory well; not every problem has one.
bool plan_variant(const Problem& p, const DeviceLimits& limits, const FmaVariant& v, bool strict, FmaPlan* best) {
  const Shape s = shape_of(p, v);
  const bool weight = p.pass == Pass::bwd_weight;
  const double products = pairs_between(p.kh, p.ho, p.pad_top, p.pad_top + p.h) *
                          pairs_between(p.kw, p.wo, p.pad_left, p.pad_left + p.w);
  bool found = false;
  const auto keep = [&](Candidate& candidate, int64_t images) {
    if (found && candidate.least_cycles(images, products) >= best->cycles) return;
    if (found && candidate.cycles(images) >= best->cycles) return;
    candidate.fill(images, best);
    found = true;
  };
  const auto consider = [&](const Tile& t) {
    Candidate candidate(p, limits, v, s, t);
    if (!candidate.runs()) return false;
    if (!weight) {
      keep(candidate, t.images);
      return true;
    }
    const int64_t rounds = (p.n + t.images - 1) / t.images;
    for (int64_t splits = 1; splits <= std::min<int64_t>(rounds, 256); splits += (splits + 1) / 2)
      keep(candidate, (rounds + splits - 1) / splits * t.images);
    return true;
  };
  // The filter in parts: as few as fit; of a gradient's many rows, also smaller ones.
  const auto in_parts = [&](Tile t) {
    if (consider(t) && !(weight && t.part_rows >= 12)) return;
    if (!Candidate(p, limits, v, s, t).one_item_a_warp()) return;
    Tile least = t;  // shared memory for no part of the filter, however small
    least.part_rows = least.part_chunks = 1;
    if (Candidate(p, limits, v, s, least).shared() > limits.shared_per_block) return;
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

const Family fma_family = family_of<Planner>("fma");

}  // namespace replknet_ext::cuda
