// Sizes of what a block of the Toeplitz kernels has in shared memory. Kernels and planners share them, so no CUDA here.
// Those of table_rows have its type: the rows that a planner tries may be too many for any block.
#pragma once
#include "../../integers.h"

namespace replknet_ext::cuda {

// line: rows of a line, see toeplitz_fwd.cuh.
// Bytes of a warp's scratch for the output transpose.
REPLKNET_EXT_BOTH constexpr int transpose_bytes(int chunks) { return 8 * (2 * chunks + 1) * 16; }
// The filter's two zero-bordered copies: their rows, the width of a row and how far they are apart, in elements. Width
// and distance keep the rows and copies that a warp reads together in different banks.
template <class Int>
REPLKNET_EXT_BOTH constexpr Int filter_rows(Int table_rows, int line = 1) {
  return 2 * line * (table_rows + 1) - 1;
}
REPLKNET_EXT_BOTH constexpr int filter_width(int offsets, int line = 1) {
  return line == 1 ? 8 * offsets + (offsets == 7 ? 24 : 8) : 4 * offsets + (offsets == 7 ? 12 : 4);
}
template <class Int>
REPLKNET_EXT_BOTH constexpr Int filter_copy(Int rows, int offsets, int line = 1) {
  const Int elements = rows * filter_width(offsets, line);
  return line == 1 ? elements : ceil_div(elements, 64) * 64 + 8;
}
template <class Int>
REPLKNET_EXT_BOTH constexpr Int filter_bytes(Int table_rows, int offsets, int line = 1) {
  return 2 * filter_copy(filter_rows(table_rows, line), offsets, line) * 2;
}
// The single copy of the float32 kernels.
REPLKNET_EXT_BOTH constexpr int float_filter_width(int offsets) { return 8 * offsets + 8; }
template <class Int>
REPLKNET_EXT_BOTH constexpr Int float_filter_bytes(Int table_rows, int offsets) {
  return filter_rows(table_rows) * float_filter_width(offsets) * 4;
}
// Weight fragments of 32 lanes x 16 bytes.
template <class Int>
REPLKNET_EXT_BOTH constexpr Int table_bytes(Int table_rows, int offsets) {
  return table_rows * offsets * 512;
}

}  // namespace replknet_ext::cuda
