// What a block of the FMA kernels has to do, counted for the planner: instructions, as compiled, and shared memory cycles.
#pragma once
#include <algorithm>
#include <array>
#include <map>
#include <vector>

#include "../../integers.h"
#include "../../problem.h"
#include "variants.h"

namespace replknet_ext::cuda {

// Instructions beside the multiply-adds, counted in the compiled kernels.
inline constexpr double kStepIssue = 5;       // of a step of the steady loop and of its ends: loads, addresses
inline constexpr double kFullStepIssue = 14;  // of a full step outside it, which loads every filter row
inline constexpr double kEdgeStepIssue = 20;  // of an edge step: loads, bounds, loop
inline constexpr double kEdgeRowIssue = 4;    // of an output row in an edge step: branch, address, load
inline constexpr double kItemIssue = 400;      // of an item: its geometry, epilogue, stores
inline constexpr double kChunkIssue = 60;      // of a chunk: addresses, first filter rows

inline int fma_plan_floor4(int v) { return v >= 0 ? v / 4 : -((3 - v) / 4); }

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
  s.first_window = std::max(0, fma_plan_floor4(-6 - origin + 3));
  const int last = std::min(s.column_groups + s.chunks - 2, fma_plan_floor4(width - 1 - origin));
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

// Of a variant: what it costs to compute a tile, once for tiles that differ in planes and columns alone.
class FmaWork {
 public:
  struct Block {
    double issue = 0, longest = 0, waves = 0;  // instructions of its busiest scheduler, of its longest item; shared memory cycles
  };

  FmaWork(const Problem& p, const FmaVariant& v, const FmaShape& s)
      : p_(p), v_(v), s_(s), weight_(p.pass == Pass::bwd_weight), tail_(s.fw + s.shift - 4 * (s.chunks - 1)) {}

  // The average block, for a round of its images.
  Block block(const FmaTileShape& t) {
    const double item = item_issue(t);
    Block sum;
    for (const Columns& c : columns_of(t))
      for (const Rows& r : rows_of(t).all) {
        const Block b = part(t, item, r, c);
        const double times = r.times * c.times;
        sum.issue += times * b.issue, sum.longest += times * b.longest, sum.waves += times * b.waves;
      }
    const double blocks = tiles(t);
    return {sum.issue / blocks, sum.longest / blocks, sum.waves / blocks};
  }

  // The same in less time, were all schedulers and warps equally busy: less issue and longest, the same waves.
  Block even_block(const FmaTileShape& t, int warps) {
    const RowsOf& rows = rows_of(t);
    const double item = item_issue(t), wave = filter_wave(t);
    Block sum;
    for (const Columns& c : columns_of(t)) {
      sum.issue += c.times * rows.items * c.warps_with_work * item;
      for (int kind = 0; kind < kKinds; ++kind) {
        sum.issue += c.times * rows.issue[kind] * c.all[kind];
        sum.waves += c.times * c.all[kind] * s_.elements * (8. * rows.steps[kind] + wave * rows.loads[kind]);
      }
    }
    const double one = (1 - 1e-9) / tiles(t);
    return {sum.issue / 4 * one, sum.issue / warps * one, sum.waves * one};
  }

  // Less than block's issue in even less time: the products alone. 0 where block looks at some parts, not at all.
  double products(const FmaTileShape& t) {
    double down = 0, along = 0;
    fma_each_tile(ceil_div(s_.row_groups, t.rows), [&](int tile, int times) {
      const int64_t first = int64_t{tile} * t.rows * v_.rows, rows = std::min<int64_t>(t.rows * v_.rows, s_.oh - first);
      down += times * pairs_between(s_.fh, rows, p_.pad_top - first, p_.pad_top + p_.h - first);
    });
    for (const Columns& c : columns_of(t))
      along += c.times * (4 * c.all[kWhole] + tail_ * c.all[kTail] + 3 * c.all[kHead]);
    const double share = ceil_div(s_.fh, t.part_rows) >= 16 ? 0 : ceil_div(t.rows, t.merge) <= 64 ? 1 - 1e-9 : 0.8;
    return share * down * along * s_.elements / (t.merge * tiles(t));
  }

 private:
  enum { kWhole, kTail, kHead, kKinds };  // of a chunk: 4 taps, the narrower last one, the shifted first one

  // Items of one column of warps over the rows of a tile and a part of the filter. Their number and instructions for one
  // chunk of each kind by the item's number modulo 4, as schedulers take warps in turn.
  struct Rows {
    double times;  // how many parts and tiles it stands for
    double items[4] = {}, issue[4][kKinds] = {}, steps[kKinds] = {}, loads[kKinds] = {};
    std::vector<std::array<double, kKinds>> different;  // instructions of the items that differ
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

  // Those of all tiles and parts, and what they add up to.
  struct RowsOf {
    std::vector<Rows> all;
    double items = 0, issue[kKinds] = {}, steps[kKinds] = {}, loads[kKinds] = {};
  };

  double tiles(const FmaTileShape& t) const {
    return static_cast<double>(ceil_div(s_.row_groups, t.rows)) * ceil_div(s_.column_groups, t.columns);
  }
  double item_issue(const FmaTileShape& t) const {
    return kItemIssue / (ceil_div(s_.fh, t.part_rows) * ceil_div(s_.chunks, t.part_chunks));
  }
  double filter_wave(const FmaTileShape& t) const {  // shared memory cycles; fewer if a warp shares the filter
    return weight_ || t.channels > 1 ? 4 : 2;
  }

  const RowsOf& rows_of(const FmaTileShape& t) {
    const auto [found, missing] = rows_.try_emplace({t.rows, t.merge, t.part_rows, t.slices});
    RowsOf& sums = found->second;
    if (!missing) return sums;
    const int parts_down = ceil_div(s_.fh, t.part_rows), sample = std::max(1, parts_down / 8);
    fma_each_tile(ceil_div(s_.row_groups, t.rows), [&](int tile, int times) {
      for (int down = 0; down < parts_down; down += sample)
        sums.all.push_back(rows(t, tile, down, static_cast<double>(times) * std::min(sample, parts_down - down)));
    });
    for (const Rows& r : sums.all) {
      for (int i = 0; i < 4; ++i) sums.items += r.times * r.items[i];
      for (int kind = 0; kind < kKinds; ++kind) {
        for (int i = 0; i < 4; ++i) sums.issue[kind] += r.times * r.issue[i][kind];
        sums.steps[kind] += r.times * r.steps[kind], sums.loads[kind] += r.times * r.loads[kind];
      }
    }
    return sums;
  }

  Rows rows(const FmaTileShape& t, int tile, int down, double times) const {
    Rows r{times};
    const int groups = std::min(t.rows, s_.row_groups - tile * t.rows), merged = ceil_div(groups, t.merge);
    const int part_rows = std::min(t.part_rows, s_.fh - down * t.part_rows);
    const int slice_rows = ceil_div(t.part_rows, t.slices), slices = ceil_div(t.part_rows, slice_rows);
    const int counted = std::min(merged, 64);
    const double alike = static_cast<double>(merged) / counted;
    std::array<int, 4> last{-1};
    Sum sums[kKinds]{};
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
        r.different.push_back({of_chunk(sums[kWhole]), of_chunk(sums[kTail]), of_chunk(sums[kHead])});
      }
      r.items[i % 4] += alike;
      for (int kind = 0; kind < kKinds; ++kind) {
        r.issue[i % 4][kind] += alike * r.different.back()[kind];
        r.steps[kind] += alike * sums[kind].steps, r.loads[kind] += alike * sums[kind].filter_loads;
      }
    }
    return r;
  }
  double of_chunk(const Sum& sum) const { return sum.issue * s_.elements + kChunkIssue; }

  const std::vector<Columns>& columns_of(const FmaTileShape& t) {
    const auto [found, missing] = columns_.try_emplace({t.columns, t.merge, t.channels * t.images});
    if (missing)
      fma_each_tile(ceil_div(s_.column_groups, t.columns),
                    [&](int tile, int times) { found->second.push_back(columns(t, tile, times)); });
    return found->second;
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
    const double wave = filter_wave(t);
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
    for (const std::array<double, kKinds>& one : r.different)
      for (int has = 0; has < 4; ++has)
        if (c.most_whole[has] >= 0)
          b.longest = std::max(b.longest, item + c.most_whole[has] * one[kWhole] + (has & 1 ? one[kTail] : 0) +
                                              (has & 2 ? one[kHead] : 0));
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
  std::map<std::array<int, 4>, RowsOf> rows_;                 // by rows, merge, part_rows and slices of a tile
  std::map<std::array<int, 3>, std::vector<Columns>> columns_;  // by columns, merge and planes
};

}  // namespace replknet_ext::cuda
