// Matrices [rows][columns] into [columns][rows]: a tensor of channels_last into NCHW (rows: pixels, columns: channels of
// an image) and back.
//
// A block turns one tile, of every gridDim.y-th matrix, through shared memory. Both sides of the tile are 128 bytes of
// global memory or more, so that reads and writes are of whole sectors. A thread moves 16 bytes at a time where the rows
// of that side start at multiples of 16 bytes, else one element, which are read and written by neighbouring lanes.
//
// Shared memory holds the tile by rows of words. A word is one element of 4 or 8 bytes, or two neighbours of 2 bytes. Rows
// lie an odd number of words apart, so that no access meets a bank twice (of 32; for words of 8 bytes of 16 per half warp):
// - writing, a warp covers 4 rows x 8 vectors; a word's bank is row + 4 vector + constant (8 bytes: row + 2 vector);
// - reading, each lane takes the words below each other of one output vector. A warp covers 4 vectors of 8 rows x 8 words
//   for 2 bytes (bank: 8 vector + word), else 8 vectors x 4 words (bank: 4 vector + word; 8 bytes: 2 vector + word).
#include <algorithm>
#include <type_traits>

#include "../integers.h"
#include "backend.h"
#include "ptx.cuh"

namespace replknet_ext::cuda {
namespace {

struct TransposeArgs {
  const void* from;
  void* to;
  int64_t matrices, rows, columns;
  unsigned across;               // tiles along a row
  bool vectors_in, vectors_out;  // 16 bytes at a time
};

constexpr int kThreads = 256;

template <class T>
struct Tile {
  using Word = std::conditional_t<sizeof(T) == 8, uint64_t, uint32_t>;
  static constexpr int kSide = sizeof(T) == 2 ? 64 : 32;  // elements
  static constexpr int kPacked = sizeof(Word) / sizeof(T), kWords = kSide / kPacked, kPitch = kWords | 1;
  static constexpr int kVector = 16 / sizeof(T);          // elements
  static constexpr int kBytes = kSide * kPitch * sizeof(Word);
  static constexpr int kEach = kSide * kSide / kThreads;  // elements of a thread
  static constexpr int kStep = kThreads / kSide;          // rows of elements that the block reads at a time
  static constexpr int kBatch = 4;                        // elements that a thread has on their way

  union Vector {
    uint4 all;
    Word words[16 / sizeof(Word)];
  };

  Word* words;

  __device__ __forceinline__ T& at(int row, int column) const {
    return reinterpret_cast<T*>(words + row * kPitch)[column];
  }

  // Rows and columns: of the tile that lie in the matrix, whose rows are `pitch` elements apart.
  __device__ __forceinline__ void read_vectors(const T* from, int64_t pitch, int rows, int columns) const {
    constexpr int kTimes = kEach / kVector;
    Vector v[kTimes];
    const auto each = [&](const auto& use) {
#pragma unroll
      for (int i = 0; i < kTimes; ++i) {
        const int item = threadIdx.x + i * kThreads, row = item / 8 % kSide;
        const int column = (item % 8 + item / 8 / kSide * 8) * kVector;
        if (row < rows && column < columns) use(v[i], row, column);
      }
    };
    each([&](Vector& one, int row, int column) {
      one.all = ptx::load_global(reinterpret_cast<const uint4*>(from + row * pitch + column));
    });
    each([&](Vector& one, int row, int column) {
#pragma unroll
      for (int w = 0; w < kVector / kPacked; ++w) words[row * kPitch + column / kPacked + w] = one.words[w];
    });
  }

  __device__ __forceinline__ void read_elements(const T* from, int64_t pitch, int rows, int columns) const {
    const int column = threadIdx.x % kSide;
    const bool inside = column < columns;
    if (column >= ceil_div(columns, kPacked) * kPacked) return;  // a word that is read whole is written whole
    from += threadIdx.x / kSide * pitch + column;
#pragma unroll 1
    for (int row = threadIdx.x / kSide; row < rows; row += kBatch * kStep) {
      T v[kBatch];
#pragma unroll
      for (int k = 0; k < kBatch; ++k, from += kStep * pitch)
        if (row + k * kStep < rows) v[k] = inside ? ptx::load_global(from) : T{0};
#pragma unroll
      for (int k = 0; k < kBatch; ++k)
        if (row + k * kStep < rows) at(row + k * kStep, column) = v[k];
    }
  }

  // A vector is kVector rows of a column of the tile; where two columns share a word, a thread writes both.
  __device__ __forceinline__ void write_vectors(T* to, int64_t pitch, int rows, int columns) const {
    constexpr int kGroups = kPacked == 2 ? 4 : 8;  // of rows, which lie side by side where they are written
#pragma unroll
    for (int i = 0; i < kEach / kVector / kPacked; ++i) {
      const int item = threadIdx.x + i * kThreads, word = item / kGroups % kWords, column = word * kPacked;
      const int row = (item % kGroups + item / kGroups / kWords * kGroups) * kVector;
      if (row >= rows || column >= columns) continue;
      Word below[kVector];
#pragma unroll
      for (int k = 0; k < kVector; ++k) below[k] = words[(row + k) * kPitch + word];
      T* start = to + column * pitch + row;
      Vector v;
      if constexpr (kPacked == 1) {
#pragma unroll
        for (int k = 0; k < kVector; ++k) v.words[k] = below[k];
        ptx::store_global(reinterpret_cast<uint4*>(start), v.all);
      } else {
#pragma unroll
        for (int k = 0; k < kVector / 2; ++k) v.words[k] = (below[2 * k] & 0xffff) | below[2 * k + 1] << 16;
        ptx::store_global(reinterpret_cast<uint4*>(start), v.all);
        if (column + 1 >= columns) continue;
#pragma unroll
        for (int k = 0; k < kVector / 2; ++k) v.words[k] = below[2 * k] >> 16 | (below[2 * k + 1] & 0xffff0000);
        ptx::store_global(reinterpret_cast<uint4*>(start + pitch), v.all);
      }
    }
  }

  __device__ __forceinline__ void write_elements(T* to, int64_t pitch, int rows, int columns) const {
    const int row = threadIdx.x % kSide;
    if (row >= rows) return;
    to += threadIdx.x / kSide * pitch + row;
#pragma unroll 4
    for (int column = threadIdx.x / kSide; column < columns; column += kStep, to += kStep * pitch)
      ptx::store_global(to, at(row, column));
  }
};

template <class T>
__global__ void __launch_bounds__(kThreads, 5) transpose_kernel(const __grid_constant__ TransposeArgs a) {
  DYN_SMEM(smem);
  constexpr int kSide = Tile<T>::kSide;
  const Tile<T> tile{reinterpret_cast<typename Tile<T>::Word*>(smem)};
  const unsigned down = blockIdx.x / a.across;
  const int64_t row = int64_t{down} * kSide, column = int64_t{blockIdx.x - down * a.across} * kSide;
  const int rows = static_cast<int>(min(int64_t{kSide}, a.rows - row));
  const int columns = static_cast<int>(min(int64_t{kSide}, a.columns - column));
  for (int64_t matrix = blockIdx.y; matrix < a.matrices; matrix += gridDim.y) {
    const T* from = static_cast<const T*>(a.from) + (matrix * a.rows + row) * a.columns + column;
    T* to = static_cast<T*>(a.to) + (matrix * a.columns + column) * a.rows + row;
    if (a.vectors_in) tile.read_vectors(from, a.columns, rows, columns);
    else tile.read_elements(from, a.columns, rows, columns);
    __syncthreads();
    if (a.vectors_out) tile.write_vectors(to, a.rows, rows, columns);
    else tile.write_elements(to, a.rows, rows, columns);
    __syncthreads();  // before the next matrix takes the tile's place
  }
}

template <class T>
int launch(TransposeArgs a, void* stream) {
  const auto aligned = [](const void* tensor, int64_t row) {
    return reinterpret_cast<uintptr_t>(tensor) % 16 == 0 && row * static_cast<int64_t>(sizeof(T)) % 16 == 0;
  };
  a.vectors_in = aligned(a.from, a.columns), a.vectors_out = aligned(a.to, a.rows);
  constexpr int64_t kMostAlong = 0x7fffffff, kMostDown = 65535;  // of a grid
  const int64_t across = ceil_div(a.columns, Tile<T>::kSide), down = ceil_div(a.rows, Tile<T>::kSide);
  // a grid that is too large is the launch's error
  const int64_t tiles = across > kMostAlong / down ? kMostAlong + 1 : across * down;
  a.across = static_cast<unsigned>(across);
  const dim3 grid(static_cast<unsigned>(tiles), static_cast<unsigned>(std::min(a.matrices, kMostDown)));
  return static_cast<int>(launch_kernel(&transpose_kernel<T>, grid, dim3(kThreads), Tile<T>::kBytes, stream, a));
}

}  // namespace

int transpose(const void* from, void* to, int64_t matrices, int64_t rows, int64_t columns, int element_bytes,
              void* stream) {
  if (matrices == 0 || rows == 0 || columns == 0) return 0;
  const TransposeArgs a{from, to, matrices, rows, columns};
  return element_bytes == 8 ? launch<uint64_t>(a, stream) : element_bytes == 4 ? launch<uint32_t>(a, stream)
                                                                               : launch<uint16_t>(a, stream);
}

}  // namespace replknet_ext::cuda
