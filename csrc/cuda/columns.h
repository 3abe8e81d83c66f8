// How the columns of a problem meet the filter, in chunks of `columns` columns. Host code without CUDA.
#pragma once
#include <algorithm>

#include "../integers.h"
#include "../problem.h"

namespace replknet_ext::cuda {

struct Columns {
  int in, out;           // chunks of the input and the output
  int d_first, d_count;  // chunk offsets with a tap that can meet the image
};

inline Columns meet_columns(const Problem& p, int columns = 8) {
  Columns c{ceil_div(static_cast<int>(p.w), columns), ceil_div(static_cast<int>(p.wo), columns), 0, 0};
  const int pad = static_cast<int>(p.pad_left), kw = static_cast<int>(p.kw);
  c.d_first = std::max(-floor_div(pad + columns - 1, columns), -(c.out - 1));
  c.d_count = std::max(1, std::min(floor_div(kw + columns - 2 - pad, columns), c.in - 1) - c.d_first + 1);
  return c;
}

}  // namespace replknet_ext::cuda
