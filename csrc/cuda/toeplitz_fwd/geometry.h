// How the rows of a problem meet the filter, in pairs of lines: a line is 1 row or, in 4x4 tiles, 2 rows. Host code without
// CUDA.
#pragma once
#include <algorithm>

#include "../columns.h"
#include "plan.h"

namespace replknet_ext::cuda {

struct Rows {  // how row pairs meet, see ToeplitzFwdArgs
  int split_log2, split_rows, pairs, row_offset, q_first, q_end, ky0, shift, table_rows;
  int64_t steps;  // (output pair, input pair) meetings of one slot
};

// Slots are images (split_log2 0) or row groups. False if half as many row groups would do.
bool meet_rows(const Problem& p, int split_log2, Rows* best, int line = 1);

// The rows and columns of a problem for tiles of one kind.
struct Geometry {
  Geometry(const Problem& p, int line);
  Rows rows[4];  // of each number of row groups that may pay
  int row_count = 0;
  Columns columns;
};

// Groups of 8 slots of the whole batch.
inline int64_t slot_groups(const Problem& p, const Rows& r) { return ((p.n << r.split_log2) + 7) / 8; }

// Cycles of a row of fragments: shared memory traffic of its loads and its store.
constexpr double kTableCycles = 10;

// Calls use(size) for the whole extent and its halves, thirds ... rounded up to a multiple of unit, down to unit.
template <class Use>
void each_split(int extent, int unit, const Use& use) {
  int last = 0;
  for (int parts = 1; last != unit; parts += std::max(1, parts / 4)) {
    const int size = ceil_div(ceil_div(extent, parts), unit) * unit;
    if (size == last) {
      if (parts > extent) break;
      continue;
    }
    use(last = size);
  }
}

// Whether a kernel for planes of exactly `chunks` chunks serves a filter: one that needs fewer chunk offsets would waste
// products and spread NaN.
bool fits_width(int offsets, int chunks, const Columns& c);

// Products of a row pair of `chunks` output chunks with a row pair of the input; whole: those inside the image alone.
int products_per_meeting(int offsets, int chunks, bool whole);

// The arguments that say what the problem is and how its rows and columns meet.
void set_problem(const Problem& p, const Rows& r, const Columns& c, ToeplitzFwdArgs* a);

// Rows and columns that NaN spreads to: taps outside the filter of the first and last fragments, of `offsets` chunk offsets.
void set_spill(const Rows& r, const Columns& c, int line, int offsets, int chunks, bool whole, ToeplitzFwdPlan* plan);

}  // namespace replknet_ext::cuda
