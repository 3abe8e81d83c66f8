#include "plan.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <map>
#include <tuple>
#include <utility>

#include "../columns.h"
#include "../family.h"
#include "../model.h"
#include "variants.h"

namespace replknet_ext::cuda {
namespace {

int clamp(int v, int low, int high) { return std::min(std::max(v, low), high); }

FastDivisor fast_divisor(int d) {
  return {d, static_cast<uint32_t>(((uint64_t{1} << 31) + static_cast<uint64_t>(d) - 1) / static_cast<uint64_t>(d))};
}

// Layout of shared memory, as ToeplitzWeightLayout of toeplitz_weight/tile.cuh, which this file must not include.
struct Layout {
  int slots, chunk_bytes, halves, element, products;
};
Layout layout_of(ToeplitzWeightMath math) {
  if (math == ToeplitzWeightMath::tf32) return {8, 8 * 32 + 32, 1, 4, 1};
  if (math == ToeplitzWeightMath::bf16x3) return {16, 16 * 16 + 16, 2, 4, 3};
  return {16, 16 * 16 + 16, 1, 2, 1};
}
int in_chunks_of(const ToeplitzWeightVariant& v) { return v.whole ? v.chunks : v.chunks + v.offsets - 1; }

// Model constants, in cycles of one SM; predictions, used only to compare candidates.
constexpr double kStageCycles = 150;   // barrier and first fragments of a stage, for a block alone on its SM
// Instructions, counted in the kernels: of finding what a thread copies, of a chunk's copy and its parts, of a gathered
// chunk, of a row offset beside its products, of a pair beside its fragments.
constexpr double kFind = 75, kCopy = 16, kPart = 7, kGather = 50, kRow = 8, kPair = 60;

const char* refuse(const Problem& p) {
  if (p.pass != Pass::bwd_weight) return "only bwd_weight";
  if (p.algorithm == Algorithm::fft) return "computes directly, not by FFT";
  if (p.dtype == DType::f64) return "float64 does not run on tensor cores here";
  if (p.dtype == DType::f32 && p.precision == Precision::ieee)
    return "float32 runs on tensor cores only as tf32 or bf16x3";
  return nullptr;
}

bool admits(const Problem& p, ToeplitzWeightMath math) {
  if (p.dtype != DType::f32) return math == ToeplitzWeightMath::half;
  return math == ToeplitzWeightMath::bf16x3 || (math == ToeplitzWeightMath::tf32 && p.precision == Precision::tf32);
}

struct Rows {  // how output line pairs meet input lines, see ToeplitzWeightArgs
  int split_log2, split_rows, pairs, row_offset, pad, row_first, row_end, dy_first, dy_end;
};

bool meet_rows(const Problem& p, int line, int split_log2, Rows* r) {
  const int slots = 1 << split_log2;
  const int all = ceil_div(static_cast<int>(p.ho), 2 * line), pairs = ceil_div(all, slots);
  if (split_log2 && (slots / 2) * pairs >= all) return false;  // half as many groups would do
  // what is left of the padding moves the lines of x, so that line i is 2 pair - pad + dy and needs the fewest dy
  const int pad = floor_div(static_cast<int>(p.pad_top), line), row_offset = static_cast<int>(p.pad_top) - line * pad;
  *r = {split_log2, 2 * line * pairs, pairs, row_offset, pad, -(ceil_div(all, pairs) - 1) * 2 * pairs,
        ceil_div(static_cast<int>(p.h) + row_offset, line), 0, 0};
  const int last = (static_cast<int>(p.kh) + 2 * line - 2) / line;  // dy whose first x row and last grad row meet a tap
  r->dy_first = clamp(r->row_first + pad - 2 * (pairs - 1), 0, last);
  r->dy_end = clamp(r->row_end + pad, r->dy_first + 1, last + 1);
  return true;
}

bool fits_width(const ToeplitzWeightVariant& v, const Columns& c) {
  const int needed = std::max(-c.d_first, c.d_first + c.d_count - 1);
  return !v.whole || (c.in <= v.chunks && c.out <= v.chunks && needed <= v.offsets / 2);
}

struct Shape {  // what a candidate chooses
  int row_warps, parts_down, channels, stage_pairs, ahead, splits;
};

// Products of a row of chunks and a row of the filter, all column tiles and parts along them.
double products_per_row(const ToeplitzWeightVariant& v, const Columns& c, int tiles, int parts_along) {
  double sum = 0;
  if (v.whole) {
    for (int d = -(v.offsets / 2); d <= v.offsets / 2; ++d) sum += std::max(0, v.chunks - std::abs(d));
    return sum;
  }
  const int counted = std::min(tiles, 64), sample = std::max(1, parts_along / 256), step = sample * (v.offsets - 1);
  const int samples = ceil_div(parts_along, sample);
  for (int i = 0; i < counted; ++i) {  // the first tiles, and the last
    const int tile = i + 1 < counted ? i : tiles - 1;
    const double weight = counted > 1 && i == counted / 2 ? tiles - counted + 1 : 1;
    const int64_t place = int64_t{tile} * v.chunks + c.d_first;
    const int64_t end = std::min<int64_t>(in_chunks_of(v), int64_t{c.out} - int64_t{tile} * v.chunks + v.offsets - 1);
    // chunks of the input that a part meets: those from `first` on, up to `last`
    const auto pairs = [&](int64_t along) {
      const int64_t first = -(place + along * step);
      return pairs_between(v.offsets, v.chunks, std::max<int64_t>(0, first), std::min(c.in + first, end));
    };
    // Parts in the middle meet all that a part can; those far outside meet nothing.
    const auto within = [&](int64_t along) { return std::min<int64_t>(std::max<int64_t>(0, along), samples); };
    const auto up = [&](int64_t v) { return v <= 0 ? -(-v / step) : ceil_div(v, int64_t{step}); };  // v / step rounded up
    const int64_t begin = within(up(-in_chunks_of(v) - place)), all = std::max(begin, within(up(-place)));
    const int64_t all_end = std::max(all, within(up(c.in - end - place + 1))), none = std::max(all_end, within(up(c.in - place)));
    double sampled = 0;
    for (int64_t along = begin; along < all; ++along) sampled += pairs(along);
    if (all_end > all) sampled += static_cast<double>(all_end - all) * pairs(all);
    for (int64_t along = all_end; along < none; ++along) sampled += pairs(along);
    sum += weight * sample * sampled;
  }
  return sum;
}

int tiles_of(const ToeplitzWeightVariant& v, const Columns& c) { return v.whole ? 1 : ceil_div(c.out, v.chunks); }
int parts_along_of(const ToeplitzWeightVariant& v, const Columns& c) {
  return v.whole ? 1 : std::max(1, ceil_div(c.d_count - 1, v.offsets - 1));
}

class Candidate {
 public:
  Candidate(const Problem& p, const DeviceLimits& limits, const ToeplitzWeightVariant& v, const Rows& r,
            const Columns& c, double per_row)
      : p_(p), limits_(limits), v_(v), r_(r), c_(c), l_(layout_of(v.math)), per_row_(per_row) {
    groups_ = static_cast<int>(((p.n << r.split_log2) + l_.slots - 1) / l_.slots);
    tiles_ = tiles_of(v, c), parts_along_ = parts_along_of(v, c);
    count_products();
  }

  // of all blocks: groups of slots, column tile by column tile
  int64_t all_jobs() const { return static_cast<int64_t>(groups_) * tiles_; }
  int row_offsets() const { return r_.dy_end - r_.dy_first; }

  // Products of a channel and a group of slots, all parts, and the share lost where warps of a stage differ.
  void count_products() {
    steps_ = 0;  // row offsets of all pairs that meet the image: even ones, then odd ones
    for (int odd = 0; odd < 2; ++odd) {
      const auto half = [&](int64_t v) { return v >= 0 ? (v + 1) / 2 : v / 2; };  // rounded up
      const int64_t first = r_.dy_first + odd, offsets = half(r_.dy_end - first), before = r_.pad - first;
      if (offsets > 0) steps_ += pairs_between(r_.pairs, offsets, half(r_.row_first + before), half(r_.row_end + before));
    }
  }

  // Rows that the rings must hold: from the first that a stage needs to the last that is fetched meanwhile.
  void size_rings(const Shape& s) {
    const int offsets = s.row_warps * v_.rows, stages = ceil_div(r_.pairs, s.stage_pairs);
    const bool again = all_jobs() > s.splits;  // a block has more than one job
    const auto [kept, missing] = rings_.try_emplace({s.row_warps, s.parts_down, s.stage_pairs, again});
    if (!missing) return void(std::tie(ring_, burst_) = kept->second);
    ring_ = burst_ = 1;
    for (int down = 0; down < s.parts_down; ++down) {
      const int dy0 = r_.dy_first + down * (offsets - v_.line), dy_end = std::min(dy0 + offsets, r_.dy_end);
      const int pad = r_.pad, start = clamp(dy0 - pad, r_.row_first, r_.row_end);
      const auto reach = [&](int stage) {
        const int pair = std::min(r_.pairs, (stage + 1) * s.stage_pairs) - 1;
        return std::min(std::max(2 * pair + dy_end - pad, start), r_.row_end) - start;
      };
      const int job = reach(stages - 1);
      burst_ = std::max(burst_, reach(0));
      const auto hold = [&](int64_t stage) {
        if (stage < 0 || stage >= stages) return;
        const int low = clamp(static_cast<int>(2 * stage * s.stage_pairs) + dy0 - pad, start, r_.row_end) - start;
        const int64_t ahead = stage + s.ahead;
        const int64_t high = ahead < stages ? reach(static_cast<int>(ahead))
                             : !again      ? job
                                           : ahead / stages * job + reach(static_cast<int>(ahead % stages));
        ring_ = static_cast<int>(std::max<int64_t>(ring_, std::min<int64_t>(high - low, 1 << 24)));
      };
      // Both ends of what is held are straight lines over the stages between the few where one meets an edge: the first
      // and last stages, and those where a line leaves `start` or meets row_end. The largest is beside one of them.
      const int64_t rows = 2 * s.stage_pairs;
      for (int64_t line : {int64_t{start}, int64_t{r_.row_end}})
        for (int64_t offset : {int64_t{dy0}, int64_t{dy_end} - 2, int64_t{dy_end}}) {
          const int64_t stage = (line + pad - offset) / rows;
          for (int64_t near = stage - 3; near <= stage + 2; ++near) hold(near);
        }
      for (int64_t near = 0; near < 4; ++near) hold(near), hold(stages - 1 - near);
    }
    kept->second = {ring_, burst_};
  }

  bool choose(const Shape& s) {
    s_ = s;
    warps_ = s.row_warps * s.channels;
    constexpr int kMostParts = 256;  // each has a ring of its own to be found
    if (warps_ > v_.warps || s.parts_down > kMostParts || all_jobs() > 1 << 30 || s.splits > 65535) return false;
    blocks_x_ = (p_.c + s.channels - 1) / s.channels * s.parts_down * parts_along_;
    if (blocks_x_ > 0x7fffffff) return false;
    size_rings(s);
    const int64_t in = in_chunks_of(v_), chunk = static_cast<int64_t>(s.channels) * l_.chunk_bytes;
    x_bytes_ = ring_ * in * chunk;
    grad_bytes_ = static_cast<int64_t>(s.ahead + 1) * 2 * s.stage_pairs * v_.chunks * chunk;
    const int64_t offsets = static_cast<int64_t>(s.row_warps) * v_.rows;
    const int64_t end = 4 * (warps_ * tile_floats(v_.offsets, v_.line) +
                             s.channels * squares(v_.line) * offsets * sum_columns(v_.offsets, v_.line));
    plane_bytes_ = std::max(x_bytes_ + grad_bytes_, (end / l_.halves + 127) / 128 * 128);
    shared_ = plane_bytes_ * l_.halves + 128 * warps_;  // and the lanes' shares of the bias gradient
    return shared_ <= limits_.shared_per_block;
  }

  int64_t blocks() const { return blocks_x_ * s_.splits; }
  // Less than `cycles` of any shape: all products, spread over the device.
  double least_cycles() const {
    const double mmas = steps_ * per_row_ * l_.products * static_cast<double>(groups_) * static_cast<double>(p_.c);
    return kStartCycles + kAlmost * mmas / 4 * kMmaCycles / kMostBusy / limits_.sms;
  }

  void fill(ToeplitzWeightPlan* out) const {
    const Shape& s = s_;
    const int resident = resident_blocks(limits_, warps_, shared_, v_.warps);
    const int64_t blocks = blocks_x_ * s.splits;
    const int parts = s.parts_down * parts_along_;
    const double jobs = std::ceil(static_cast<double>(all_jobs()) / s.splits);  // of a block
    const double overlap = 1 + (s.parts_down - 1.0) * v_.line / std::max(1, row_offsets());
    const double rows = steps_ * overlap / s.parts_down * jobs * s.channels;
    const double mmas = rows / tiles_ * per_row_ / parts_along_ * l_.products;
    const double pairs = static_cast<double>(r_.pairs) * jobs;  // row pairs that a block's warps go through
    const double stages = std::ceil(static_cast<double>(r_.pairs) / s.stage_pairs) * jobs;
    const double in_rows = std::min<double>(r_.row_end - r_.row_first, 2.0 * (r_.pairs - 1) + s.row_warps * v_.rows) * jobs;
    const double pieces = (in_rows * in_chunks_of(v_) + 2 * pairs * v_.chunks) * l_.slots * s.channels;  // 8 columns
    const double columns_in = v_.whole ? p_.w : std::min<double>(p_.w, 8 * in_chunks_of(v_));
    const double columns_out = static_cast<double>(p_.wo) / tiles_;
    const double slots = static_cast<double>(p_.n << r_.split_log2) / groups_;  // with an image or a group of rows
    const double bytes = (in_rows * columns_in + 2 * pairs * columns_out) * v_.line * slots * s.channels * l_.element;
    const int64_t row = p_.w * l_.element;
    const int copies = p_.channels_last || row % 4 ? 1 : row % 16 == 0 && v_.line == 1 ? l_.element / 2 : row % 8 == 0 ? l_.element : 2 * l_.element;
    const bool gathers = p_.channels_last || row % 4 || v_.math == ToeplitzWeightMath::bf16x3;
    // a job of one stage loads all of its rows at once: longer runs of them a thread
    const int item_rows = s.stage_pairs >= r_.pairs ? 8 : s.stage_pairs == 1 ? 2 : 4;
    const double load = pieces / 32 * (kFind / item_rows + (gathers ? kGather : kCopy + kPart * copies));
    const double fragments = rows * in_chunks_of(v_) * (v_.math == ToeplitzWeightMath::tf32 ? 4.0 : 0.5 * l_.halves) +
                             pairs * warps_ * v_.chunks * (v_.math == ToeplitzWeightMath::tf32 ? 8.0 : l_.halves);
    const double issue = (mmas + fragments + load + rows * kRow + pairs * warps_ * kPair) / 4;
    const double tensor = mmas / 4 * kMmaCycles;
    const double shared = (rows * in_chunks_of(v_) * 256 * l_.halves + pairs * warps_ * v_.chunks * 512 * l_.halves + 2 * bytes) / kSharedBytes;
    // channels_last: a pixel's sector of 32 bytes serves as many blocks as it has groups of channels
    const double spread = p_.channels_last ? std::max(1.0, 32.0 / (s.channels * l_.element)) : 1.0;
    // what parts, row groups and tiles read again comes from L2
    const double unique = static_cast<double>(p_.n * p_.c * (p_.h * p_.w + p_.ho * p_.wo)) * l_.element / static_cast<double>(blocks);
    const double global = std::max(unique / kGlobalBytes, bytes * spread / kL2Bytes);
    const double diagonals = warps_ * diagonal_instructions(v_.offsets, v_.rows, v_.line) / 4;
    const double stores = 600 + static_cast<double>(p_.kh * p_.kw) / parts * s.channels / (32 * warps_) * 40;
    // warps of a stage that have a row offset less wait for the others
    const double even = std::max(1.0, s.stage_pairs * steps_ / r_.pairs / s.parts_down / s.row_warps);
    // the largest of what a block asks of its SM bounds it, the others cost a little
    const auto bound = [&](double products, double instructions, double memory) {
      const double most = std::max({products, instructions, shared, memory});
      return most + 0.05 * (products + instructions + shared + memory - most);
    };
    const double alone = bound(tensor / busy(warps_) * (1 + 0.3 / even), issue, global) + stages * kStageCycles;
    const auto work = [&](int n) {
      const double together = n * bound(tensor / busy(n * warps_), issue / 0.8, global);
      return n * diagonals + (n > 1 ? std::max(alone, together) : alone);
    };
    double cycles = sm_cycles(Waves(blocks, resident, limits_.sms), {0, kStartCycles + stores, 0, stores}, work);
    if (s.splits > 1) cycles += second_launch_cycles(limits_, 4.0 * s.splits * p_.c * (p_.kh * p_.kw + 1));

    out->args = {};
    ToeplitzWeightArgs& a = out->args;
    a.tensor[0].h = static_cast<int>(p_.h), a.tensor[0].w = static_cast<int>(p_.w), a.tensor[0].chunks = in_chunks_of(v_);
    a.tensor[1].h = static_cast<int>(p_.ho), a.tensor[1].w = static_cast<int>(p_.wo), a.tensor[1].chunks = v_.chunks;
    a.n = static_cast<int>(p_.n), a.c = static_cast<int>(p_.c);
    a.kh = static_cast<int>(p_.kh), a.kw = static_cast<int>(p_.kw);
    a.row_offset = r_.row_offset;
    a.pad_top = r_.pad, a.pad_left = static_cast<int>(p_.pad_left);
    a.dtype = p_.dtype == DType::f32 ? 0 : p_.dtype == DType::f16 ? 1 : 2;
    a.channels_last = p_.channels_last;
    a.split_log2 = r_.split_log2, a.split_rows = r_.split_rows, a.jobs = static_cast<int>(all_jobs()), a.splits = s.splits;
    a.split_groups = s.splits / tiles_, a.split_tiles = s.splits % tiles_;
    a.pairs = r_.pairs, a.stage_pairs = s.stage_pairs, a.stages = ceil_div(r_.pairs, s.stage_pairs), a.ahead = s.ahead;
    a.tiles = tiles_, a.row_first = r_.row_first, a.row_end = r_.row_end, a.dy_first = r_.dy_first, a.dy_end = r_.dy_end;
    a.d_first = v_.whole ? -(v_.offsets / 2) : c_.d_first;
    a.parts_down = s.parts_down, a.parts_along = parts_along_;
    a.row_warps = s.row_warps, a.block_channels = s.channels, a.x_ring = ring_;
    a.x_bytes = static_cast<int>(x_bytes_), a.grad_bytes = static_cast<int>(grad_bytes_);
    a.plane_bytes = static_cast<int>(plane_bytes_);
    a.item_rows = item_rows;
    a.by_burst = fast_divisor(ceil_div(burst_, item_rows)), a.by_steady = fast_divisor(ceil_div(2 * s.stage_pairs, item_rows));
    out->details = {{{"row_groups", 1 << r_.split_log2},
                     {"stage_pairs", s.stage_pairs},
                     {"block_chunks", v_.chunks},
                     {"block_jobs", static_cast<int64_t>(jobs)}}};
    out->parts = parts, out->warps = warps_, out->shared_bytes = static_cast<int>(shared_);
    out->blocks_per_sm = resident, out->blocks = blocks;
    out->mmas = steps_ * overlap * per_row_ * l_.products * static_cast<double>(groups_) * static_cast<double>(p_.c);
    out->cycles = cycles;
    out->spill_rows = out->spill_columns = -1;
    out->workspace_bytes = s.splits > 1 ? int64_t{4} * s.splits * p_.c * (p_.kh * p_.kw + 1) : 0;
  }

 private:
  const Problem& p_;
  const DeviceLimits& limits_;
  const ToeplitzWeightVariant& v_;
  const Rows& r_;
  const Columns& c_;
  const Layout l_;
  Shape s_{};
  int groups_, tiles_, parts_along_, warps_ = 0, ring_ = 0, burst_ = 0;
  double per_row_, steps_ = 0;
  std::map<std::array<int, 4>, std::pair<int, int>> rings_;  // ring_ and burst_ by what they depend on
  int64_t x_bytes_ = 0, grad_bytes_ = 0, plane_bytes_ = 0, shared_ = 0, blocks_x_ = 0;
};

bool plan_variant(const Problem& p, const DeviceLimits& limits, const ToeplitzWeightVariant& v, const Rows& r,
                  const Columns& c, double per_row, ToeplitzWeightPlan* best) {
  Candidate candidate(p, limits, v, r, c, per_row);
  if (candidate.least_cycles() >= best->cycles) return false;
  bool found = false;
  const int offsets = candidate.row_offsets(), all = ceil_div(offsets, v.rows);
  const int shared = v.line;  // row offsets that two parts have in common
  const int least_warps = shared / v.rows + 1;  // of a part, which must have more
  const auto warps_of = [&](int parts) {
    return parts == 1 ? all : std::max(least_warps, ceil_div(ceil_div(offsets - shared, parts) + shared, v.rows));
  };
  const auto fewest_parts = [&](int warps) { return ceil_div(offsets - shared, warps * v.rows - shared); };
  const auto parts_of = [&](int warps) { return std::max(2, fewest_parts(warps)); };
  int warps = all;
  if (warps > v.warps) warps = warps_of(parts_of(v.warps));
  for (int tried = 0; tried < 3 || !found; ++tried) {  // as few parts as fit, and some more
    const int down = warps * v.rows >= offsets ? 1 : fewest_parts(warps);
    for (int channels = 1; channels <= 8 && warps * channels <= v.warps; channels *= 2) {
      if (channels > 1 && channels >= 2 * p.c) break;
      for (int stage : {1, 2, 4, r.pairs}) {
        if (stage > r.pairs || (stage == r.pairs && stage > 8 && stage != 1)) continue;
        int last_splits = 0;
        for (int64_t jobs = candidate.all_jobs();; jobs = (jobs + 1) / 2) {  // of a block
          const int splits = static_cast<int>((candidate.all_jobs() + jobs - 1) / jobs);
          if (splits != last_splits && candidate.choose({warps, down, channels, stage, stage == 1 ? 2 : 1, splits})) {
            // partials stay few: no more splits than give every SM 8 blocks
            if (splits > 1 && candidate.blocks() > int64_t{8} * limits.sms) break;
            ToeplitzWeightPlan plan;
            candidate.fill(&plan);
            if (plan.cycles < best->cycles) *best = plan;
            found = true;
          }
          last_splits = splits;
          if (jobs == 1) break;
        }
      }
    }
    if (warps <= least_warps) break;
    warps = warps_of(parts_of(warps - 1));
  }
  return found;
}

class Planner {
 public:
  using Plan = ToeplitzWeightPlan;

  Planner(const Problem& p, const DeviceLimits& limits)
      : p_(p), limits_(limits), columns_{meet_columns(p, 8), meet_columns(p, 4)} {}

  static int count(Pass pass) { return pass == Pass::bwd_weight ? kToeplitzWeightCount : 0; }
  static const char* name(Pass, int variant) { return kToeplitzWeight[variant].name; }
  const char* refuse() const { return cuda::refuse(p_); }
  const char* refuse(int variant) const {
    const ToeplitzWeightVariant& v = kToeplitzWeight[variant];
    if (!admits(p_, v.math)) return "the variant is for another dtype or precision";
    if (v.line > 1 && p_.channels_last) return "the variant is not for channels_last tensors";
    return fits_width(v, columns(v)) ? nullptr : "the variant is for narrower planes or filters";
  }
  bool plan(int variant, ToeplitzWeightPlan* best) const {
    const ToeplitzWeightVariant& v = kToeplitzWeight[variant];
    const int slots = layout_of(v.math).slots;
    const Columns& c = columns(v);
    const double per_row = products_per_row(v, c, tiles_of(v, c), parts_along_of(v, c));
    bool found = false;
    for (int split = 0; 1 << split <= slots; ++split) {
      Rows rows;
      if (split > 0 && (p_.n % slots == 0 || p_.n >= 64)) break;
      if (!meet_rows(p_, v.line, split, &rows)) continue;
      found = plan_variant(p_, limits_, v, rows, c, per_row, best) || found;
    }
    return found;
  }
  const char* none(int) const { return "the variant needs more shared memory than a block of this device has"; }

 private:
  const Problem& p_;
  const Columns& columns(const ToeplitzWeightVariant& v) const { return columns_[v.line - 1]; }

  const DeviceLimits& limits_;
  Columns columns_[2];  // in chunks of 8 columns, of 4
};

}  // namespace

void set_access(const Problem& p, int variant, int block_channels, int access, ToeplitzWeightTensor* t) {
  const Layout l = layout_of(kToeplitzWeight[variant].math);
  t->by_chunks = fast_divisor(t->chunks);
  t->access = access;
  t->by_units = fast_divisor(block_channels);
  if (!p.channels_last) return;  // else one channel at a time, or two of 16-bit types
  t->access = l.element == 2 && access >= 4 && block_channels % 2 == 0 ? 4 : l.element;
  t->by_units = fast_divisor(block_channels * l.element / t->access);
}

const Family toeplitz_weight_family = family_of<Planner>("toeplitz_weight", Candidates::many);

}  // namespace replknet_ext::cuda
