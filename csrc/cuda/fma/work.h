// What a block of the FMA kernels has to do, counted for the planner: instructions, as compiled, and shared memory
// cycles.
#pragma once
#include <algorithm>
#include <array>
#include <atomic>
#include <limits>

#include "../../integers.h"
#include "../../problem.h"
#include "../model.h"
#include "variants.h"

namespace replknet_ext::cuda {

// Instructions beside the multiply-adds, counted in the compiled kernels.
inline constexpr double kStepIssue = 5;       // of a step of the steady loop and of its ends: loads, addresses
inline constexpr double kFullStepIssue = 14;  // of a full step outside it, which loads every filter row
inline constexpr double kEdgeStepIssue = 20;  // of an edge step: loads, bounds, loop
inline constexpr double kEdgeRowIssue = 4;    // of an output row in an edge step: branch, address, load
inline constexpr double kItemIssue = 400;      // of an item: its geometry, epilogue, stores
inline constexpr double kChunkIssue = 60;      // of a chunk: addresses, first filter rows

// How often this process has counted a tile's work in full: what most of a plan's time goes into.
inline std::atomic<int64_t> fma_blocks_counted{0};

struct FmaShape {  // the problem as one correlation, see FmaArgs
  int fh, fw, oh, ow;
  int row_groups, column_groups;
  int shift, chunks;
  int first_window, windows;  // the windows that meet the image
  bool shares_zeros;          // a row's last quad and the next row's first are both zeros
  int elements;               // 1, or 2 for double: relative size and price of everything
};

inline FmaShape fma_shape_of(const Problem& p, const FmaVariant& v) {
  const bool weight = p.pass == Pass::bwd_weight;
  FmaShape s{};
  s.fh = static_cast<int>(weight ? p.ho : p.kh), s.fw = static_cast<int>(weight ? p.wo : p.kw);
  s.oh = static_cast<int>(weight ? p.kh : p.ho), s.ow = static_cast<int>(weight ? p.kw : p.wo);
  s.row_groups = ceil_div(s.oh, v.rows), s.column_groups = ceil_div(s.ow, 4);
  const int pad = static_cast<int>(p.pad_left), width = static_cast<int>(p.w);
  // A chunk of 3 taps comes first: then rows share their border of zeros for the paddings of the papers' filters.
  s.shift = s.fw % 4 == 3;
  s.chunks = ceil_div(s.fw + s.shift, 4);
  const int origin = -s.shift - pad;
  s.first_window = std::max(0, floor_div(-3 - origin, 4));
  const int last = std::min(s.column_groups + s.chunks - 2, floor_div(width - 1 - origin, 4));
  s.windows = std::max(1, last - s.first_window + 1);
  s.shares_zeros = 4 * s.first_window + origin + 3 < 0 && 4 * (s.first_window + s.windows) + origin >= width;
  s.elements = v.f64 ? 2 : 1;
  return s;
}

struct FmaTileShape {
  int channels, images;  // powers of two
  int rows, columns;     // groups
  int merge;
  int part_rows, part_chunks;
  int slices;
};

// Calls use(index, times) for the first, the middle and the last of n tiles.
template <class Use>
void fma_each_tile(int n, const Use& use) {
  use(0, 1);
  if (n > 2) use(n / 2, n - 2);
  if (n > 1) use(n - 1, 1);
}

// Calls use(size) for the whole extent, its halves, quarters ... down to 1.
template <class Use>
void fma_each_split(int extent, const Use& use) {
  for (int size = extent, last = 0; size != last; last = size, size = ceil_div(size, 2)) use(size);
}

// log2 of n, rounded up: tells the splits of an extent apart, as the number of pieces.
inline int fma_log2_up(int n) { return n <= 1 ? 0 : 1 + fma_log2_up(ceil_div(n, 2)); }

// Of a variant: what it costs to compute a tile.
class FmaWork {
 public:
  struct Block {
    // instructions of its busiest scheduler and of its longest item; shared memory cycles
    double issue = 0, longest = 0, waves = 0;
  };
  // What the warps that lie beside each other have to do, summed over all tiles of some columns, merge and planes.
  struct Along {
    double taps = 0, chunks = 0, warps_with_work = 0;
    int warps = 0;  // of a tile
  };

  FmaWork(const Problem& p, const FmaVariant& v, const FmaShape& s)
      : p_(p), v_(v), s_(s), weight_(p.pass == Pass::bwd_weight), tail_(s.fw + s.shift - 4 * (s.chunks - 1)) {
    for (auto& of_tiles : pairs_) of_tiles.fill(-1);
  }

  Along along(const FmaTileShape& t) const {
    Along a;
    each_columns(t, [&](const Columns& c) {
      a.taps += c.times * (4 * c.all[kWhole] + tail_ * c.all[kTail] + 3 * c.all[kHead]);
      a.chunks += c.times * (c.all[kWhole] + c.all[kTail] + c.all[kHead]);
      a.warps_with_work += c.times * c.warps_with_work;
      a.warps = std::max(a.warps, c.warps);
    });
    return a;
  }

  // The average block, for a round of its images, counted item by item.
  Block block(const FmaTileShape& t) const {
    ++fma_blocks_counted;
    const double item = item_issue(t);
    std::array<Columns, 3> columns{};
    int count = 0;
    each_columns(t, [&](const Columns& c) { columns[count++] = c; });
    Block sum;
    each_part(t, [&](int tile, int down, double times) {
      const Rows r = rows(t, tile, down, columns);
      for (int i = 0; i < count; ++i) {
        const Block b = part(t, item, r, columns[i]);
        const double all = times * columns[i].times;
        sum.issue += all * b.issue, sum.longest += all * r.longest[i], sum.waves += all * b.waves;
      }
    });
    const double blocks = tiles(t);
    return {sum.issue / blocks, sum.longest / blocks, sum.waves / blocks};
  }

  // Less than that in no time: the products and the fewest instructions that come with them, evenly over schedulers and
  // items.
  Block least(const FmaTileShape& t, const Along& a) {
    const int slice_rows = ceil_div(t.part_rows, t.slices), slices = ceil_div(t.part_rows, slice_rows);
    const double issue = issue_per_pair(a.taps, a.chunks, slice_rows) +
                         item_issue(t) * a.warps_with_work / (static_cast<double>(slice_rows) * v_.rows);
    const double all = share(t) * pairs(t) / t.merge * issue / tiles(t);
    return {all / 4, all / (ceil_div(t.rows, t.merge) * slices * a.warps), 0};
  }

  // Less than the instructions of all blocks of a plane, with any parts and the tile's rows or fewer.
  double least_of_all(const FmaTileShape& t, const Along& a) {
    if (least_pairs_ < 0) {
      least_pairs_ = std::numeric_limits<double>::infinity();
      FmaTileShape some{};
      fma_each_split(s_.row_groups, [&](int rows) {
        fma_each_split(s_.fh, [&](int part_rows) {
          some.rows = rows, some.part_rows = part_rows;
          least_pairs_ = std::min(least_pairs_, pairs(some));
        });
      });
    }
    return share(t) * least_pairs_ / t.merge * issue_per_pair(a.taps, a.chunks, s_.fh);
  }

 private:
  enum { kWhole, kTail, kHead, kKinds };  // of a chunk: 4 taps, the narrower last one, the shifted first one
  static constexpr int kMostItems = 64;   // of a column of warps and a slice, that block() looks at

  // Items of one column of warps over the rows of a tile and a part of the filter. Their number and instructions for one
  // chunk of each kind by the item's number modulo 4, as schedulers take warps in turn.
  struct Rows {
    double items[4] = {}, issue[4][kKinds] = {}, steps[kKinds] = {}, loads[kKinds] = {};
    double longest[3] = {};  // instructions of the longest item, with the columns of each kind of tile
  };
  // The warps that lie beside each other in a tile, by their number modulo 4: how many there are, and their chunks.
  struct Columns {
    double times;  // how many tiles it stands for
    int warps;
    double warps_with_work = 0;
    double items[4] = {}, chunks[4][kKinds] = {}, all[kKinds] = {};
    int most_whole[4] = {-1, -1, -1, -1};  // whole chunks of one, by whether it has a last (1) and a first one (2)
  };
  struct Sum {
    double issue, steps, filter_loads;
  };

  // Fewest instructions for a pair of rows of filter and output that meet in so many taps and chunks, of an item that has
  // `rows` rows of the filter: of few, all steps are edge steps (see sum_chunk).
  double issue_per_pair(double taps, double chunks, int rows) const {
    const int r = v_.rows;
    const double step = rows < r - 1       ? kEdgeRowIssue + (kEdgeStepIssue + r - rows) / rows
                        : rows < 2 * r - 1 ? 2 * kStepIssue / r
                                           : kStepIssue / r;
    return s_.elements * (4 * taps + chunks * step) + kChunkIssue * chunks / (static_cast<double>(rows) * r);
  }
  // Of what there is to do: what block() sees at least, where it looks at some items only.
  double share(const FmaTileShape& t) const { return ceil_div(t.rows, t.merge) <= kMostItems ? kAlmost : 0.8; }
  double tiles(const FmaTileShape& t) const {
    return static_cast<double>(ceil_div(s_.row_groups, t.rows)) * ceil_div(s_.column_groups, t.columns);
  }
  double item_issue(const FmaTileShape& t) const {
    return kItemIssue / (ceil_div(s_.fh, t.part_rows) * ceil_div(s_.chunks, t.part_chunks));
  }

  // Calls use(columns) for the first, the middle and the last of a row of tiles.
  template <class Use>
  void each_columns(const FmaTileShape& t, const Use& use) const {
    fma_each_tile(ceil_div(s_.column_groups, t.columns), [&](int tile, int times) { use(columns(t, tile, times)); });
  }

  // Calls use(tile, part, times) for the parts that stand for all, of a column of tiles; once for all that are whole and
  // inside the image, as these are alike.
  template <class Use>
  void each_part(const FmaTileShape& t, const Use& use) const {
    const int parts_down = ceil_div(s_.fh, t.part_rows), sample = std::max(1, parts_down / 8);
    int inside_tile = 0, inside_part = 0;
    double inside = 0;
    fma_each_tile(ceil_div(s_.row_groups, t.rows), [&](int tile, int times) {
      const int64_t rows = int64_t{t.rows} * v_.rows, y = tile * rows;
      for (int down = 0; down < parts_down; down += sample) {
        const double all = static_cast<double>(times) * std::min(sample, parts_down - down);
        const int64_t k = int64_t{down} * t.part_rows, below = y + k - p_.pad_top;  // the image's first row
        if (below >= 0 && below + rows + t.part_rows - 1 <= p_.h && y + rows <= s_.oh && k + t.part_rows <= s_.fh)
          inside_tile = tile, inside_part = down, inside += all;
        else
          use(tile, down, all);
      }
    });
    if (inside > 0) use(inside_tile, inside_part, inside);
  }

  // How often a filter row and an output row meet inside the image, by the tiles and parts that block() looks at.
  double pairs(const FmaTileShape& t) {
    double& known = pairs_[fma_log2_up(ceil_div(s_.row_groups, t.rows))][fma_log2_up(ceil_div(s_.fh, t.part_rows))];
    if (known < 0) {
      known = 0;
      each_part(t, [&](int tile, int down, double times) {
        const int64_t y = int64_t{tile} * t.rows * v_.rows, k = int64_t{down} * t.part_rows, above = p_.pad_top - y - k;
        known += times * pairs_between(std::min<int64_t>(t.part_rows, s_.fh - k),
                                       std::min<int64_t>(int64_t{t.rows} * v_.rows, s_.oh - y), above, above + p_.h);
      });
    }
    return known;
  }

  Rows rows(const FmaTileShape& t, int tile, int down, const std::array<Columns, 3>& columns) const {
    Rows r;
    const int groups = std::min(t.rows, s_.row_groups - tile * t.rows), merged = ceil_div(groups, t.merge);
    const int part_rows = std::min(t.part_rows, s_.fh - down * t.part_rows);
    const int slice_rows = ceil_div(t.part_rows, t.slices), slices = ceil_div(t.part_rows, slice_rows);
    const int counted = std::min(merged, kMostItems);
    const double alike = static_cast<double>(merged) / counted;
    std::array<int, 4> last{-1};
    Sum sums[kKinds]{};
    double issue[kKinds]{};
    for (int i = 0; i < counted * slices; ++i) {
      const int skipped = i / counted * slice_rows, f_rows = std::min(slice_rows, part_rows - skipped);
      const int above = static_cast<int>(p_.pad_top) - down * t.part_rows - skipped;
      if (f_rows <= 0) break;
      const int group = static_cast<int>(static_cast<int64_t>(i % counted) * merged / counted) * t.merge;
      const int group_high = std::min(groups - 1, group + t.merge - 1);
      const int y0 = (tile * t.rows + group) * v_.rows, y_last = (tile * t.rows + group_high) * v_.rows;
      const int rows = group == group_high ? std::min(v_.rows, s_.oh - y0) : v_.rows;
      const int k_low = std::max(0, above - y_last);
      const int k_end = std::min(f_rows + rows - 1, static_cast<int>(p_.h) + above - y0);
      if (k_low >= k_end) continue;
      if (const std::array<int, 4> now{k_low, k_end, f_rows, rows}; now != last) {  // most items are like the one before
        last = now;
        sums[kWhole] = sum_chunk(k_low, k_end, f_rows, rows, 4, true);
        if (tail_ < 4) sums[kTail] = sum_chunk(k_low, k_end, f_rows, rows, tail_, false);
        if (s_.shift) sums[kHead] = sum_chunk(k_low, k_end, f_rows, rows, 3, !v_.f64);
        for (int kind = 0; kind < kKinds; ++kind) issue[kind] = sums[kind].issue * s_.elements + kChunkIssue;
        for (int i = 0; i < 3; ++i)
          for (int has = 0; has < 4; ++has)
            if (const int whole = columns[i].most_whole[has]; whole >= 0)
              r.longest[i] = std::max(r.longest[i], item_issue(t) + whole * issue[kWhole] +
                                                        (has & 1 ? issue[kTail] : 0) + (has & 2 ? issue[kHead] : 0));
      }
      r.items[i % 4] += alike;
      for (int kind = 0; kind < kKinds; ++kind) {
        r.issue[i % 4][kind] += alike * issue[kind];
        r.steps[kind] += alike * sums[kind].steps, r.loads[kind] += alike * sums[kind].filter_loads;
      }
    }
    return r;
  }

  Columns columns(const FmaTileShape& t, int tile, double tile_count) const {
    const int groups = std::min(t.columns, s_.column_groups - tile * t.columns), planes = t.channels * t.images;
    const int last_window = s_.first_window + s_.windows - 1;
    Columns c{tile_count, static_cast<int>((static_cast<int64_t>(groups) * t.merge * planes + 31) / 32)};
    const int sample = std::max(1, c.warps / 512) | 1;  // odd, so that all schedulers have some
    for (int warp = 0; warp < c.warps; warp += sample) {
      const int64_t low = int64_t{warp} * 32 / planes, high = (int64_t{warp} * 32 + 31) / planes;
      const bool one_row = low / groups == high / groups;
      const int column_low = tile * t.columns + (one_row ? static_cast<int>(low % groups) : 0);
      const int column_high = tile * t.columns + (one_row ? static_cast<int>(high % groups) : groups - 1);
      const int t_low = std::max(0, s_.first_window - column_high);
      const int t_high = std::min(s_.chunks - 1, last_window - column_low);
      if (t_low > t_high) continue;
      const int times = std::min(sample, c.warps - warp);
      const bool has_tail = t_high == s_.chunks - 1 && tail_ < 4, has_head = t_low == 0 && s_.shift;
      const int chunks[kKinds] = {t_high - t_low + 1 - has_tail - has_head, has_tail, has_head};
      c.items[warp % 4] += times, c.warps_with_work += times;
      for (int kind = 0; kind < kKinds; ++kind) c.chunks[warp % 4][kind] += times * chunks[kind], c.all[kind] += times * chunks[kind];
      int& most = c.most_whole[has_tail + 2 * has_head];
      most = std::max(most, chunks[kWhole]);
    }
    return c;
  }

  // The items of all rows and columns. Item number i * warps + warp goes to a scheduler by its number modulo 4: of a block
  // with more items than warps, these are a multiple of 4, too.
  Block part(const FmaTileShape& t, double item, const Rows& r, const Columns& c) const {
    const double wave = weight_ || t.channels > 1 ? 4 : 2;  // to load filter values; fewer cycles if a warp shares them
    double scheduler[4] = {};
    Block b;
    for (int i = 0; i < 4; ++i)
      for (int warp = 0; warp < 4; ++warp) {
        double& sum = scheduler[(static_cast<int64_t>(i) * c.warps + warp) % 4];
        sum += r.items[i] * c.items[warp] * item;
        for (int kind = 0; kind < kKinds; ++kind) sum += r.issue[i][kind] * c.chunks[warp][kind];
      }
    for (int kind = 0; kind < kKinds; ++kind)
      b.waves += c.all[kind] * s_.elements * (8. * r.steps[kind] + wave * r.loads[kind]);
    b.issue = *std::max_element(scheduler, scheduler + 4);
    return b;
  }

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

  const Problem& p_;
  const FmaVariant& v_;
  const FmaShape& s_;
  const bool weight_;
  const int tail_;  // taps of the last chunk
  std::array<std::array<double, 32>, 32> pairs_;  // by splits into tiles and into parts; -1: not known yet, as below
  double least_pairs_ = -1;
};

}  // namespace replknet_ext::cuda
