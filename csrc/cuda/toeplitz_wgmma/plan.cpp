#include <cstring>

#include "../family.h"
#include "../model.h"
#include "../toeplitz_fwd/geometry.h"
#include "../toeplitz_fwd/plan.h"
#include "../toeplitz_fwd/sizes.h"
#include "args.h"
#include "variants.h"

namespace replknet_ext::cuda {
namespace {

constexpr int kSlots = kWgmmaRing / 4;  // warpgroups that multiply

// Whether this build holds the kernels; builds without CUDA plan for those that do.
bool in_build() {
#ifdef REPLKNET_EXT_CUDA_ARCHS
  return std::strstr(REPLKNET_EXT_CUDA_ARCHS, "9.0");
#else
  return true;
#endif
}

class Candidate {
 public:
  // turns: tiles of images that a block computes one after the other
  Candidate(const Problem& p, const DeviceLimits& limits, const ToeplitzWgmmaVariant& v, const Rows& rows, const Columns& c,
            int64_t turns)
      : p_(p), limits_(limits), v_(v), r_(rows), c_(c), turns_(turns) {
    // the input pairs that some output pair meets
    r_.q_first = std::max(rows.q_first, -rows.shift);
    r_.q_end = std::max(r_.q_first, std::min(rows.q_end, rows.pairs - 1 - rows.shift + rows.table_rows));
    in_chunks_ = v.chunks + v.offsets - 1;
    chunk_tiles_ = ceil_div(c.out, v.chunks);
    shared_ = kWgmmaBarriers + table_bytes<int64_t>(r_.table_rows + 1, v.offsets) + kWgmmaStages * stage_bytes() +
              std::max<int64_t>(filter_bytes<int64_t>(r_.table_rows, v.offsets), kWgmmaRing * transpose_bytes(v.chunks));
  }

  bool runs() const {
    return r_.table_rows <= kWgmmaRing && shared_ <= limits_.shared_per_block && p_.c * chunk_tiles_ <= 0x7fffffff;
  }

  double cycles() const {
    const double columns = v_.chunks * v_.images;
    const double in_bytes = static_cast<double>(r_.q_end - r_.q_first) * static_cast<double>(stage_bytes());
    const double out_bytes = static_cast<double>(r_.pairs) * 32 * columns;
    const double all = static_cast<double>(blocks()) * static_cast<double>(turns_);
    const double used = static_cast<double>(p_.n) / static_cast<double>(block_rows() * turns_ * v_.images);
    const auto moved = [&](double bytes, int64_t rows, int64_t width) {
      return std::max(2.0 * static_cast<double>(p_.n * p_.c * rows * width) / all / kGlobalBytes, bytes * used / kL2Bytes);
    };
    const double loads = moved(in_bytes, p_.h, p_.w), stores = moved(out_bytes, p_.ho, p_.wo);
    const double first = std::min(1.0, static_cast<double>(kWgmmaStages) / std::max(1, r_.q_end - r_.q_first));
    const double last = std::min(1.0, static_cast<double>(r_.table_rows) / r_.pairs);
    const double load = kTableCycles * r_.table_rows * v_.offsets + loads * first, turns = static_cast<double>(turns_);
    // One block at a time on an SM. Those with the most work come first, so that the others even the SMs out.
    const Tiles tiles = tiles_of();
    const double rounds = std::max(1.0, static_cast<double>(blocks()) / limits_.sms), average = tiles.sum / chunk_tiles_;
    const double work = turns * (blocks() <= limits_.sms ? tiles.most : rounds * average + tiles.least);
    const double later = (rounds - 1) * (kStartCycles + load), move = rounds * turns * (loads + stores);
    return kStartCycles + load + std::max(work + later, move - load) + stores * last;
  }

  void fill(double cycles, ToeplitzFwdPlan* out) const {
    out->args = {};
    ToeplitzFwdArgs& a = out->args;
    set_problem(p_, r_, c_, &a);
    a.block_pairs = r_.pairs, a.block_chunks = v_.chunks, a.block_groups = v_.images / 8;
    a.pair_tiles = 1, a.chunk_tiles = static_cast<int>(chunk_tiles_);
    a.part_rows = r_.table_rows, a.parts_down = 1, a.parts_along = 1;
    a.in_chunks = in_chunks_, a.plane = static_cast<int>(stage_bytes());
    a.block_channels = 1, a.turns = static_cast<int>(turns_);
    out->groups = (p_.n + 7) / 8;
    out->warps = kWgmmaRing + kWgmmaProducers, out->shared_bytes = static_cast<int>(shared_);
    out->blocks_per_sm = 1, out->blocks = blocks();
    out->mmas = slot_steps() * tiles_of().products * static_cast<double>(p_.c * block_rows() * turns_);
    out->cycles = cycles;
    out->details = {{{"block_images", v_.images}, {"turns", turns_}}};
    // Rows of taps beside the filter, and 3 pairs more: those of the other warps of a warpgroup, which multiply by zeros
    // until their own pair begins.
    out->spill_rows = std::max({0, 1 - r_.ky0, r_.ky0 + 2 * r_.table_rows - static_cast<int>(p_.kh)}) + 6;
    out->spill_columns = std::max({0, 7 - 8 * c_.d_first - static_cast<int>(p_.pad_left),
                                   8 * (c_.d_first + v_.offsets) + static_cast<int>(p_.pad_left - p_.kw)});
  }

 private:
  int64_t block_rows() const { return ceil_div(p_.n, v_.images * turns_); }  // of the grid
  int64_t blocks() const { return p_.c * chunk_tiles_ * block_rows(); }
  // What the block of a tile of images computes: cycles of the one with the most and the least, of all tiles of a plane, and
  // their products of an input pair.
  struct Tiles {
    double most = 0, least = 0, sum = 0, products = 0;
  };
  Tiles tiles_of() const {
    const double steps = slot_steps();
    Tiles all;
    const auto add = [&](int64_t tile, double times) {  // as ToeplitzWgmma::consume chooses
      const int64_t low = tile * v_.chunks + c_.d_first, chunks = std::min<int64_t>(v_.chunks, c_.out - tile * v_.chunks);
      int64_t products = std::min<int64_t>(v_.offsets, c_.in - low) - std::max<int64_t>(0, 1 - chunks - low), own = v_.chunks;
      if (v_.chunks == 2 && v_.images >= 64 && chunks == 1 && products <= v_.offsets / 2 + 1) products = v_.offsets / 2 + 1, own = 1;
      else if (v_.chunks == 2 && products < v_.offsets) products = v_.offsets - 1;
      else products = v_.offsets;
      const double columns = static_cast<double>(own * v_.images);
      const double tensor = columns / 128 * (kWgmmaCycles > 0 ? kWgmmaCycles : kWgmmaReported), reads = (columns * 32 + 4 * 512) / kSharedBytes;
      const double cycles = steps * static_cast<double>(products) * std::max(tensor / kMostBusy, reads);
      all.most = std::max(all.most, cycles), all.least = all.sum == 0 ? cycles : std::min(all.least, cycles);
      all.sum += times * cycles, all.products += times * static_cast<double>(products);
    };
    constexpr int64_t kEdge = 3;  // tiles at either end that may differ
    for (int64_t tile = 0; tile < std::min<int64_t>(kEdge, chunk_tiles_); ++tile) add(tile, 1);
    if (chunk_tiles_ > 2 * kEdge) add(kEdge, static_cast<double>(chunk_tiles_ - 2 * kEdge));
    for (int64_t tile = std::max(kEdge, chunk_tiles_ - kEdge); tile < chunk_tiles_; ++tile) add(tile, 1);
    return all;
  }
  int64_t stage_bytes() const { return int64_t{2} * in_chunks_ * v_.images * 16; }
  // Input pairs that each warpgroup meets, of one tile.
  double slot_steps() const {
    const auto of = [&](int64_t q) {
      const int64_t low = std::max<int64_t>(0, q + r_.shift - r_.table_rows + 1), high = std::min<int64_t>(r_.pairs - 1, q + r_.shift);
      return high < low ? 0 : std::min<int64_t>(kSlots, high / 4 - low / 4 + 1);
    };
    // up and down again, as in toeplitz_ring; between them it repeats every 4 pairs
    const int64_t first = r_.q_first, end = r_.q_end, ramp = std::min<int64_t>(end - first, 2 * r_.table_rows + 8);
    double sum = 0, middle = 0;
    for (int64_t q = first; q < first + ramp / 2; ++q) sum += static_cast<double>(of(q));
    for (int64_t q = end - (ramp - ramp / 2); q < end; ++q) sum += static_cast<double>(of(q));
    for (int64_t q = first + ramp / 2; q < first + ramp / 2 + 4; ++q) middle += static_cast<double>(of(q)) / 4;
    return sum + static_cast<double>(end - first - ramp) * middle;
  }

  const Problem& p_;
  const DeviceLimits& limits_;
  const ToeplitzWgmmaVariant& v_;
  Rows r_;
  const Columns& c_;
  int64_t turns_;
  int in_chunks_;
  int64_t chunk_tiles_;
  int64_t shared_;
};

class Planner {
 public:
  using Plan = ToeplitzFwdPlan;

  Planner(const Problem& p, const DeviceLimits& limits) : p_(p), limits_(limits), columns_(meet_columns(p)) {
    meet_rows(p, 0, &rows_);
  }

  static int count(Pass pass) { return pass == Pass::fwd ? kToeplitzWgmmaCount : 0; }
  static const char* name(Pass, int variant) { return kToeplitzWgmma[variant].name; }
  const char* refuse() const {
    if (limits_.capability != 90) return "only GPUs of compute capability 9.0";
    if (!in_build()) return "this build has no code for compute capability 9.0";
    if (p_.pass != Pass::fwd) return "only fwd and bwd_input";
    if (p_.algorithm == Algorithm::fft) return "computes directly, not by FFT";
    if (p_.dtype != DType::f16 && p_.dtype != DType::bf16) return "only float16 and bfloat16";
    if (p_.channels_last && p_.c > 1) return "only contiguous tensors, not channels_last";
    if (p_.n < 16) return "only batches of 16 images or more";
    return nullptr;
  }
  const char* refuse(int variant) const {
    return columns_.d_count <= kToeplitzWgmma[variant].offsets ? nullptr : "the filter is wider than the variant's";
  }
  bool plan(int variant, ToeplitzFwdPlan* best) const {
    const ToeplitzWgmmaVariant& v = kToeplitzWgmma[variant];
    bool found = false;
    each_split(static_cast<int>(ceil_div(p_.n, v.images)), 1, [&](int turns) {
      const Candidate candidate(p_, limits_, v, rows_, columns_, turns);
      if (!candidate.runs()) return;
      found = true;
      if (const double cycles = candidate.cycles(); cycles < best->cycles) candidate.fill(cycles, best);
    });
    return found;
  }
  const char* none(int) const { return "the filter has more rows than the ring has pairs, or needs more shared memory"; }

 private:
  Problem p_;
  const DeviceLimits& limits_;
  Columns columns_;
  Rows rows_;
};

}  // namespace

const Family toeplitz_wgmma_family = family_of<Planner>("toeplitz_wgmma", Candidates::few, kWgmmaCycles > 0);

}  // namespace replknet_ext::cuda
