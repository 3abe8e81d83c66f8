// CPU kernels: channels in the vector lanes, one list of kernels for each pass and instruction set.
#pragma once
#include "../problem.h"

namespace replknet_ext::cpu {

// How a kernel runs a problem. A unit is the smallest piece of work a thread takes; consecutive units share packed
// filters, so a thread should run one contiguous range. No result depends on where the range is cut.
struct Plan {
  int tile;          // of the kernel's own table
  int64_t chunk;     // fwd: output rows of a unit. bwd_weight: filter rows of a unit
  int64_t rows;      // bwd_weight: gradient rows packed at a time
  int64_t units;     // fwd: channel blocks x image groups x row chunks x strips. bwd_weight: channel blocks x filter row chunks
  int64_t scratch;   // bytes one thread needs, aligned to kAlign
  double cost;       // predicted microseconds of the whole pass on one thread (model.h)
  int64_t finish_units = 0;  // units of a second phase, which starts when the first has ended
  int64_t shared = 0;        // bytes that all threads and both phases share, aligned to kAlign
  int64_t columns = 0;       // direct: output columns that are packed at a time
  int length_y, length_x;    // fft: rows of the table of lengths (fft/plan.h)
  int64_t tile_y, tile_x;    // fft: outputs of a tile
  int64_t groups;            // fft, bwd_weight: parts of the batch that are summed apart
};
constexpr int64_t kAlign = 64;

// Dense in the problem's memory format; filters and their gradients are [c][kh][kw].
struct Tensors {
  const void* x = nullptr;     // input
  const void* w = nullptr;     // fwd: the filter
  const void* bias = nullptr;  // fwd: [c] or null
  const void* grad = nullptr;  // bwd_weight: gradient of the output
  void* out = nullptr;         // fwd: the output. bwd_weight: the filter's gradient
  void* shared = nullptr;      // of plan's size
};

struct Kernel {
  const char* name;
  Algorithm algorithm;  // its family: direct or fft
  // Null and the plan, or the reason why not. Neither cost nor the order of sums may depend on threads.
  const char* (*plan)(const Problem&, int threads, Plan*);
  // Units begin .. end - 1 of a phase (0 or 1). Problem describes the forward conv also in bwd_weight.
  void (*run)(const Problem&, const Plan&, const Tensors&, int phase, int64_t begin, int64_t end, void* scratch);
};

// A kernel's variant number is its place in the list of its pass; add new ones at the end. bwd_input has those of fwd.
struct Isa {
  const char* name;
  int bytes;  // of a vector
  const Kernel* fwd;
  int fwd_count;
  const Kernel* bwd_weight;
  int bwd_weight_count;
};

// The best table this processor can run, capped by REPLKNET_EXT_CPU_ISA (base, avx2, avx512). Read once.
const Isa& isa();

int variant_count(Pass pass);
const Kernel& variant(Pass pass, int number);
inline const char* family(const Kernel& kernel) { return kernel.algorithm == Algorithm::fft ? "fft" : "direct"; }

// Which kernel runs a problem on so many threads; number -1: the one of least predicted cost that the algorithm admits.
// That choice looks neither at the threads nor at the batch size: an image's bits are the same in every batch and on
// any number of threads. Null and the choice, or the reason why there is none.
struct Choice {
  int variant;
  Plan plan;
};
const char* choose(const Problem& p, int threads, int number, Choice* choice);

namespace base { extern const Isa table; }
#if defined(__x86_64__)
namespace avx2 { extern const Isa table; }
namespace avx512 { extern const Isa table; }
#endif

}  // namespace replknet_ext::cpu
