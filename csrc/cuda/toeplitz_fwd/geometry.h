// How the rows of a problem meet the filter, in pairs of lines: a line is 1 row or, in 4x4 tiles, 2 rows. Host code without
// CUDA.
#pragma once
#include <algorithm>

#include "../columns.h"
#include "args.h"

namespace replknet_ext::cuda {

struct Rows {  // how row pairs meet, see ToeplitzFwdArgs
  int split_log2, split_rows, pairs, row_offset, q_first, q_end, ky0, shift, table_rows;
  int64_t steps;  // (output pair, input pair) meetings of one slot
};

// Slots are images (split_log2 0) or row groups. False if half as many row groups would do.
bool meet_rows(const Problem& p, int split_log2, Rows* best, int line = 1);

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

}  // namespace replknet_ext::cuda
