// CPU kernels: channels in the vector lanes, one table of entry points for each instruction set.
#pragma once
#include "../dwconv.h"

namespace replknet_ext::cpu {

// How a pass is cut into units. A unit is the smallest piece of work a thread takes; consecutive units share packed
// filters, so a thread should run one contiguous range. No result depends on where the range is cut.
struct Plan {
  int tile;          // row of the tile table
  int64_t chunk;     // fwd: output rows of a unit. bwd_weight: filter rows of a unit
  int64_t rows;      // bwd_weight: gradient rows packed at a time
  int64_t units;     // fwd: channel blocks x image groups x row chunks. bwd_weight: channel blocks x filter row chunks
  int64_t scratch;   // bytes one thread needs, aligned to kAlign
};
constexpr int64_t kAlign = 64;

struct Isa {
  const char* name;
  Plan (*plan_fwd)(const Problem&, int threads);
  void (*fwd)(const Problem&, const Plan&, const void* input, const void* weight, const void* bias, void* output,
              int64_t begin, int64_t end, void* scratch);
  Plan (*plan_bwd_weight)(const Problem&, int threads);
  // Problem describes the forward conv; grad has the output's sizes and the input's memory format.
  void (*bwd_weight)(const Problem&, const Plan&, const void* grad, const void* input, void* grad_weight,
                     int64_t begin, int64_t end, void* scratch);
};

// The best table this processor can run, capped by REPLKNET_EXT_CPU_ISA (base, avx2, avx512). Read once.
const Isa& isa();

namespace base { extern const Isa table; }
#if defined(__x86_64__)
namespace avx2 { extern const Isa table; }
namespace avx512 { extern const Isa table; }
#endif

}  // namespace replknet_ext::cpu
