// How the rows of a problem meet the filter, in pairs of lines: a line is 1 row or, in 4x4 tiles, 2 rows. Host code without
// CUDA.
#pragma once
#include "../columns.h"

namespace replknet_ext::cuda {

struct Rows {  // how row pairs meet, see ToeplitzFwdArgs
  int split_log2, split_rows, pairs, row_offset, q_first, q_end, ky0, shift, table_rows;
  int64_t steps;  // (output pair, input pair) meetings of one slot
};

// Slots are images (split_log2 0) or row groups. False if half as many row groups would do.
bool meet_rows(const Problem& p, int split_log2, Rows* best, int line = 1);

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

}  // namespace replknet_ext::cuda
