#include "geometry.h"

#include <cstdlib>

namespace replknet_ext::cuda {

bool meet_rows(const Problem& p, int split_log2, Rows* best, int line) {
  const int slots = 1 << split_log2, h = static_cast<int>(p.h), kh = static_cast<int>(p.kh), pad = static_cast<int>(p.pad_top);
  const int of_pair = 2 * line;  // rows
  const int all_pairs = ceil_div(static_cast<int>(p.ho), of_pair), pairs = ceil_div(all_pairs, slots);
  if (split_log2 && (slots / 2) * pairs >= all_pairs) return false;  // half as many groups would do
  best->steps = -1;
  for (int offset = 0; offset < of_pair; ++offset) {
    Rows r{split_log2, of_pair * pairs, pairs, offset, -(ceil_div(all_pairs, pairs) - 1) * pairs,
           ceil_div(h + offset, of_pair), 0, 0, 0, 0};
    // a product of a pair at ky has taps of the rows ky - (of_pair - 1) to ky + of_pair - 1: the first with a tap
    r.shift = floor_div(pad - offset + of_pair - 1, of_pair);
    r.ky0 = pad - offset - of_pair * r.shift;
    const int rows = (kh - r.ky0 + of_pair - 2) / of_pair + 1;
    // table rows that can meet the image
    const int low = std::max(0, r.q_first - (pairs - 1) + r.shift);
    const int high = std::max(low, std::min(rows - 1, r.q_end - 1 + r.shift));
    r.steps = static_cast<int64_t>(pairs_between(pairs, rows, int64_t{r.q_first} + r.shift, int64_t{r.q_end} + r.shift));
    r.ky0 += of_pair * low;
    r.shift -= low;
    r.table_rows = high - low + 1;
    if (best->steps < 0 || r.steps < best->steps) *best = r;
  }
  return true;
}

Geometry::Geometry(const Problem& p, int line) : columns(meet_columns(p, 8 / line)) {
  // Row groups waste rows at their seams, images that do not fill a group of 8 waste columns: count both.
  for (int split = 0; split <= 3; ++split)
    if (split == 0 || (p.n % 8 != 0 && p.n < 64)) row_count += meet_rows(p, split, &rows[row_count], line);
}

bool fits_width(int offsets, int chunks, const Columns& c) {
  const int needed = std::max(-c.d_first, c.d_first + c.d_count - 1);
  return c.in == chunks && c.out == chunks && needed == std::min(offsets / 2, chunks - 1);
}

int products_per_meeting(int offsets, int chunks, bool whole) {
  if (!whole) return offsets * chunks;
  int products = 0;
  for (int d = -(offsets / 2); d <= offsets / 2; ++d) products += std::max(0, chunks - std::abs(d));
  return products;
}

void set_problem(const Problem& p, const Rows& r, const Columns& c, ToeplitzFwdArgs* a) {
  a->n = static_cast<int>(p.n), a->c = static_cast<int>(p.c);
  a->h = static_cast<int>(p.h), a->width = static_cast<int>(p.w);
  a->ho = static_cast<int>(p.ho), a->wo = static_cast<int>(p.wo);
  a->kh = static_cast<int>(p.kh), a->kw = static_cast<int>(p.kw), a->pad_left = static_cast<int>(p.pad_left);
  a->flip = p.flip, a->activation = static_cast<int>(p.activation);
  a->split_log2 = r.split_log2, a->split_rows = r.split_rows, a->row_offset = r.row_offset;
  a->q_first = r.q_first, a->q_end = r.q_end, a->ky0 = r.ky0, a->shift = r.shift, a->table_rows = r.table_rows;
  a->d_first = c.d_first, a->pairs = r.pairs, a->chunks = c.out;
}

void set_spill(const Rows& r, const Columns& c, int line, int offsets, int chunks, bool whole, ToeplitzFwdPlan* plan) {
  const ToeplitzFwdArgs& a = plan->args;
  const int d_low = whole ? -std::min(offsets / 2, chunks - 1) : c.d_first, d_high = whole ? -d_low : c.d_first + offsets - 1;
  const int rows = 2 * line, columns = 8 / line;  // of a pair, of a chunk
  const int ky_low = r.ky0 - (rows - 1), ky_high = r.ky0 + rows * r.table_rows - 1;
  plan->spill_rows = std::max({0, -ky_low, ky_high - a.kh + 1});
  plan->spill_columns = std::max({0, columns * (1 - d_low) - 1 - a.pad_left, columns * (d_high + 1) + a.pad_left - a.kw});
}

}  // namespace replknet_ext::cuda
