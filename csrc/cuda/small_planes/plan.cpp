#include "plan.h"

#include <algorithm>
#include <cmath>

#include "../../integers.h"
#include "../family.h"
#include "../model.h"
#include "../toeplitz_weight/plan.h"
#include "variants.h"

namespace replknet_ext::cuda {
namespace {

constexpr int kMostPixels = 512;      // of a plane
constexpr int kSectorChannels = 16;   // that fill the 32 bytes of a sector in channels_last
constexpr double kTurned = 1.5;       // instructions an element that is turned from pixels to channels or back
constexpr double kTurnCycles = 800;  // a canvas and four barriers of a block that goes on

// The smallest pitch of at least so many words: 4 more than a multiple of 8, see SmallTensor.
int pitch_of(int words) { return words + ((12 - words % 8) % 8); }

const char* refuse(const Problem& p) {
  if (p.algorithm == Algorithm::fft) return "computes directly, not by FFT";
  if (p.dtype != DType::f16 && p.dtype != DType::bf16) return "only float16 and bfloat16";
  if (p.h * p.w > kMostPixels || p.ho * p.wo > kMostPixels) return "planes have more than 512 pixels";
  return nullptr;
}

// Steps of a product over the pixels of a plane: of 16 inputs, the last of 8 where that is enough.
struct Steps {
  int whole, half;
  double work() const { return whole + 0.5 * half; }  // in products of 16
};
Steps steps_of(int pixels) {
  const int rest = pixels % 16;
  return {pixels / 16 + (rest > 8), rest > 0 && rest <= 8};
}

// Cycles of the busiest SM. An SM has units of work: they are loaded, computed and stored while others overlap.
struct Costs {
  double first, last;            // cycles that nothing hides: of the first loads of a unit, of the last stores
  double move;                   // cycles of all loads and stores of a unit
  double tensor, shared, issue;  // cycles of a unit: of its SM's tensor cores, shared memory and issue slots
};
double cycles_of(const Costs& c, int64_t units, int resident, bool fetched_ahead, int warps, const DeviceLimits& limits) {
  // a block that goes on waits for the next canvas alone
  const BlockCycles block{c.first, fetched_ahead ? kTurnCycles : kStartCycles + c.first, c.move, c.last};
  return sm_cycles(Waves(units, resident, limits.sms), block,
                   [&](int n) { return n * std::max({c.tensor / busy(n * warps), c.shared, c.issue / 0.8}); });
}

bool plan_fwd(const Problem& p, const DeviceLimits& limits, int variant, SmallPlan* best) {
  const SmallFwdVariant& v = kSmallFwd[variant];
  SmallFwdArgs a{};
  a.n = static_cast<int>(p.n), a.c = static_cast<int>(p.c), a.h = static_cast<int>(p.h), a.width = static_cast<int>(p.w);
  a.ho = static_cast<int>(p.ho), a.wo = static_cast<int>(p.wo), a.kh = static_cast<int>(p.kh), a.kw = static_cast<int>(p.kw);
  a.pad_top = static_cast<int>(p.pad_top), a.pad_left = static_cast<int>(p.pad_left);
  a.flip = p.flip, a.activation = static_cast<int>(p.activation);
  a.x.pixels = a.h * a.width, a.y.pixels = a.ho * a.wo;
  a.by_width = reciprocal(a.width), a.by_wo = reciprocal(a.wo);
  a.tiles = ceil_div(a.y.pixels, 8), a.channel_warps = ceil_div(a.tiles, kSmallTiles);
  a.canvas_pitch = a.width + a.wo - 1 + (v.even && (a.width + a.wo) % 2 == 0);
  const int elements = (a.h + a.ho - 1) * a.canvas_pitch, images = 16 * v.groups;
  // The two copies start 16 banks apart.
  a.copy_bytes = v.even ? (ceil_div(ceil_div(elements, 2) - 16, 32) * 32 + 16) * 4 : ceil_div(elements, 8) * 16;
  a.canvas_bytes = a.copy_bytes * (v.even ? 2 : 1);
  const int64_t image_tiles = (p.n + images - 1) / images;
  // a warp multiplies kSmallTiles tiles, or one less
  const int least = a.tiles / a.channel_warps, more = a.tiles % a.channel_warps;
  const int full = least == kSmallTiles ? a.channel_warps : least == kSmallTiles - 1 ? more : 0;
  const int multiplied = a.channel_warps * (kSmallTiles - 1) + full;
  bool found = false;
  const int at_once = v.warps / a.channel_warps;  // channels
  for (int channels = 1; channels <= (v.last ? kSectorChannels : at_once) && at_once > 0; channels *= 2) {
    if (channels > 1 && channels >= 2 * p.c) break;
    int round = channels;
    while (round > at_once) round /= 2;
    const int warps = round * a.channel_warps;
    int words = 0;
    double work = 0, products = 0;
    for (int j = 0; j < channels; ++j) {
      const int skipped = v.last ? 0 : (j * a.x.pixels) & 1;
      const Steps s = steps_of(a.x.pixels + skipped);
      words = std::max(words, (j * a.x.pixels - skipped) / 2 + 8 * s.whole + 4 * s.half);
      work += s.work(), products += s.whole + s.half;
    }
    a.channels = channels, a.image_tiles = static_cast<int>(image_tiles);
    a.x.pitch = pitch_of(words), a.y.pitch = pitch_of(ceil_div(channels * a.y.pixels, 2));
    a.round_channels = round;
    if (v.last) {
      // an input plane with all of its steps; an odd number of pairs of words, so that channels are in different banks
      const Steps s = steps_of(a.x.pixels);
      const int plane = std::max(8 * s.whole + 4 * s.half, ceil_div(a.y.pixels, 2));
      a.x.plane = a.y.plane = 2 * (plane + (6 - plane % 4) % 4);
      a.x.pitch = a.y.pitch = pitch_of(channels * a.x.plane / 2);
    }
    a.buffer_bytes = images * 4 * std::max(a.x.pitch, a.y.pitch);
    const int64_t units = ceil_div(a.c, channels) * image_tiles;
    if (units > 0x7fffffff) continue;
    a.units = static_cast<int>(units);
    const double planes = static_cast<double>(images) * channels;
    const double pixels_in = planes * a.x.pixels, pixels_out = planes * a.y.pixels;
    Costs c{};
    // of a sector that a block has a part of, other blocks get theirs from the L2 cache
    const double sector = static_cast<double>(kSectorChannels) / channels;
    const double rate = v.last ? std::min(kGlobalBytes, kL2Bytes / sector) : kGlobalBytes;
    c.first = 2 * pixels_in / rate, c.last = 2 * pixels_out / rate, c.move = c.first + c.last;
    c.tensor = work * multiplied * v.groups / 4 * kMmaCycles;
    const double loads = work * a.channel_warps * (4.0 * v.groups + (v.even ? 2 : 4) * kSmallTiles);
    // a run in pieces of 16, 8, 4 or 2 bytes: one access of a lane each, and again on the way out
    const int in = small_access(p, 0, a.x.pixels, channels), out = small_access(p, 0, a.y.pixels, channels);
    const double pieces = 2 * pixels_in / in + 2 * pixels_out / out;
    c.shared = loads + (2 * pixels_in + 4 * pixels_out) / kSharedBytes;
    const double turned = v.last ? kTurned * (pixels_in + pixels_out) / 32 : 0;  // pixels and channels change places
    c.issue = (loads * (v.even ? 1.7 : 2.2) + products * multiplied * v.groups + 6 * pieces / 32 +
               pixels_out / 2 / 32 * 8 + turned) / 4;
    for (a.buffers = 1; a.buffers <= (v.last ? 1 : 2); ++a.buffers) {
      const int shared = a.buffers * a.buffer_bytes + channels * a.canvas_bytes;
      if (shared > limits.shared_per_block) continue;
      const int resident = resident_blocks(limits, warps, shared, v.warps);
      const int64_t together = int64_t{resident} * limits.sms, blocks = a.buffers == 1 ? units : std::min(units, together);
      const double cycles = cycles_of(c, units, resident, a.buffers == 2, warps, limits);
      if (cycles >= best->cycles || (a.buffers == 2 && units <= together)) continue;
      found = true;
      best->fwd = a;
      best->details = {{{"block_channels", channels}, {"block_images", images}}};
      best->warps = warps, best->shared_bytes = shared, best->blocks_per_sm = resident, best->blocks = blocks;
      best->mmas = products / channels * multiplied * v.groups * static_cast<double>(p.c) * static_cast<double>(image_tiles);
      best->cycles = cycles;
      best->spill_rows = best->spill_columns = -1;
    }
  }
  return found;
}

constexpr int kWarps = 4;  // of a channel in bwd_weight

// Row offsets with a product: input row - first row of the output pair + pad_top.
int first_offset(const Problem& p) {
  return static_cast<int>(std::min(std::max<int64_t>(0, p.pad_top - 2 * ((p.ho + 1) / 2 - 1)), p.kh));
}
int row_offsets(const Problem& p) {
  return std::max(1, static_cast<int>(std::min(p.kh, p.pad_top + p.h - 1)) + 1 - first_offset(p));
}

// Meetings of an output row pair and an input row; the products are a multiple.
double meetings(const Problem& p, int dy_first, int dy_end) {
  double sum = 0;
  for (int dy = dy_first; dy < dy_end; ++dy)
    for (int64_t first = 0; first < p.ho; first += 2) {
      const int64_t row = first - p.pad_top + dy;
      sum += row >= 0 && row < p.h;
    }
  return sum;
}

// The products and their ending are toeplitz_weight's, of one part. Planes of two chunks have an even width, so that their rows
// start at words.
bool plan_weight(const Problem& p, const DeviceLimits& limits, int variant, SmallPlan* best) {
  const SmallWeightVariant& v = kSmallWeight[variant];
  const bool in_runs = v.chunks == 1;
  SmallWeightArgs a{};
  ToeplitzWeightArgs& toeplitz = a.toeplitz;
  toeplitz.n = static_cast<int>(p.n), toeplitz.c = static_cast<int>(p.c);
  toeplitz.kh = static_cast<int>(p.kh), toeplitz.kw = static_cast<int>(p.kw);
  toeplitz.pad_top = static_cast<int>(p.pad_top), toeplitz.pad_left = static_cast<int>(p.pad_left);
  toeplitz.dtype = p.dtype == DType::f16 ? 1 : 2;
  toeplitz.tensor[0].h = static_cast<int>(p.h), toeplitz.tensor[0].w = static_cast<int>(p.w);
  toeplitz.tensor[1].h = static_cast<int>(p.ho), toeplitz.tensor[1].w = static_cast<int>(p.wo);
  toeplitz.jobs = ceil_div(toeplitz.n, 16), toeplitz.splits = 1, toeplitz.pairs = ceil_div(toeplitz.tensor[1].h, 2);
  toeplitz.d_first = -(v.chunks - 1), toeplitz.parts_down = toeplitz.parts_along = 1;
  toeplitz.block_channels = in_runs ? kWarps : 1, toeplitz.row_warps = kWarps / toeplitz.block_channels;
  toeplitz.dy_first = in_runs ? toeplitz.pad_top - 6 : first_offset(p);
  toeplitz.dy_end = toeplitz.dy_first + (in_runs ? v.rows : row_offsets(p));
  for (int i = 0; i < 2; ++i) {
    const ToeplitzWeightTensor& t = toeplitz.tensor[i];
    a.run[i].pixels = t.h * t.w;
    a.run[i].pitch = pitch_of(ceil_div(toeplitz.block_channels * t.h * t.w, 2));
    a.pitch[i] = in_runs ? 4 * a.run[i].pitch : (t.h + (t.h & 1)) * 32 + 16;
    a.by_words[i] = reciprocal(std::max(1, t.w / 2));
  }
  a.stage_bytes = 16 * (a.pitch[0] + a.pitch[1]);
  const int chunk_offsets = 2 * v.chunks - 1, offsets = toeplitz.dy_end - toeplitz.dy_first;
  const int sums = toeplitz.block_channels * 2 * offsets * sum_columns(chunk_offsets);
  const int end_bytes = 4 * (kWarps * tile_floats(chunk_offsets) + sums);
  toeplitz.plane_bytes = ceil_div(std::max(kSmallStages * a.stage_bytes, end_bytes), 128) * 128;
  const int shared = toeplitz.plane_bytes + kWarps * 128;
  const int64_t blocks = (p.c + toeplitz.block_channels - 1) / toeplitz.block_channels;
  if (shared > limits.shared_per_block || blocks > 0x7fffffff) return false;
  const int resident = resident_blocks(limits, kWarps, shared, v.warps);
  const double groups = toeplitz.jobs;
  const double pixels = 16.0 * (p.h * p.w + p.ho * p.wo) * toeplitz.block_channels;  // of a group of images
  // Instructions of a warp: a plane's or run's copy, besides its meetings, a fragment gathered from 4 half words, a tap
  // of the filter.
  constexpr double kPlane = 24, kRun = 34, kMeeting = 3, kGathered = 9, kTap = 40;
  const double ending = kWarps * diagonal_instructions(chunk_offsets, v.rows) / 4 +
                        toeplitz.block_channels * std::ceil(toeplitz.kh * toeplitz.kw / (32.0 * kWarps)) * kTap;
  double products, instructions, reads;  // of a group of images
  if (in_runs) {
    products = 4.0 * p.h * toeplitz.block_channels;
    const double fragments = (8.0 + p.h) * toeplitz.block_channels;
    reads = 4 * fragments, instructions = products + kGathered * fragments;
  } else {
    products = 4 * meetings(p, toeplitz.dy_first, toeplitz.dy_end);
    const double fragments = kWarps * 2.0 * toeplitz.pairs + 2 * p.h;  // by ldmatrix_x4
    reads = 4 * fragments, instructions = products + fragments + kWarps * 2 * kMeeting * 4 * v.rows;
  }
  Costs c{};
  c.first = 2 * pixels / kGlobalBytes, c.move = c.first * groups, c.last = ending + 600;
  c.tensor = products * groups / 4 * kMmaCycles;
  c.shared = groups * (reads + 2 * 2 * pixels / kSharedBytes);
  c.issue = groups * (instructions + (in_runs ? kRun : kPlane) * 32) / 4 + ending;
  best->weight = a;
  best->details = {{{"block_channels", toeplitz.block_channels}}};
  best->warps = kWarps, best->shared_bytes = shared, best->blocks_per_sm = resident, best->blocks = blocks;
  best->mmas = products / toeplitz.block_channels * groups * static_cast<double>(p.c);
  best->cycles = cycles_of(c, blocks, resident, false, kWarps, limits);
  best->spill_rows = best->spill_columns = -1;
  return true;
}

// Null or why a variant is not for a problem's planes and filter.
const char* refuse_variant(const Problem& p, int variant) {
  const bool even = p.w % 2 == 0 && p.wo % 2 == 0, last = p.pass == Pass::fwd && kSmallFwd[variant].last;
  if (p.channels_last && !last) return "the variant is not for channels_last tensors";
  if (!p.channels_last && last) return "the variant is for channels_last tensors";
  if (p.pass == Pass::fwd) return even || !kSmallFwd[variant].even ? nullptr : "the variant is for planes of an even width";
  const SmallWeightVariant& v = kSmallWeight[variant];
  const int64_t longest = std::max({p.h, p.w, p.ho, p.wo});
  if (v.chunks == 1) return longest <= 8 ? nullptr : "the variant is for planes of up to 8 rows and columns";
  if (!even) return "the variant is for planes of an even width";
  if (longest > 16) return "planes have more than 16 rows or columns";
  return row_offsets(p) <= kWarps * v.rows ? nullptr : "the variant has too few row offsets";
}

class Planner {
 public:
  using Plan = SmallPlan;

  Planner(const Problem& p, const DeviceLimits& limits) : p_(p), limits_(limits) {
    if (p.c == 1) p_.channels_last = false;  // the same memory
  }

  static int count(Pass pass) { return pass == Pass::fwd ? kSmallFwdCount : kSmallWeightCount; }
  static const char* name(Pass pass, int variant) {
    return pass == Pass::fwd ? kSmallFwd[variant].name : kSmallWeight[variant].name;
  }
  const char* refuse() const { return cuda::refuse(p_); }
  const char* refuse(int variant) const { return refuse_variant(p_, variant); }
  bool plan(int variant, SmallPlan* best) const {
    return (p_.pass == Pass::fwd ? plan_fwd : plan_weight)(p_, limits_, variant, best);
  }
  const char* none(int variant) const {
    return variant < 0 ? "no kernel for small planes fits these planes and this filter"
                       : "the variant needs more shared memory, warps or blocks than there are";
  }

 private:
  Problem p_;
  const DeviceLimits& limits_;
};

}  // namespace

int small_access(const Problem& p, uint64_t address, int pixels, int channels) {
  const int run = p.channels_last && p.c > 1 ? 1 : pixels;  // pixels that lie together
  const uint64_t m = address | static_cast<uint64_t>(p.c * run * 2) | static_cast<uint64_t>(channels) * run * 2 | 16;
  return static_cast<int>(m & (~m + 1));
}

const Family small_planes_family = family_of<Planner>("small_planes");

}  // namespace replknet_ext::cuda
