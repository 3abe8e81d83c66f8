// Warp collectives and asynchronous copies: values and fragment layouts as the PTX manual gives them.
#include "runtime.h"

#include "tensor_sum.h"

namespace emu {
namespace {
enum Kind { kSyncwarp = 1, kShuffle, kBallot, kLdmatrix = 16, kMma = 64 };

struct ShuffleArg {
  uint32_t in, out;
  int source;
};
struct LdmatrixArg {
  uint32_t* r;
  const unsigned char* row;
  int thread;
};
struct MmaArg {
  float* d;
  const uint32_t *a, *b;
};

template <int kMatrices, bool kTranspose>
void run_ldmatrix(void** p) {
  ++counters.ldmatrix;
  Fiber* caller = current;
  for (int i = 0; i < kMatrices; ++i) {
    uint16_t m[8][8];
    unsigned used = 0;
    for (int k = 0; k < 8; ++k) {
      auto* s = static_cast<LdmatrixArg*>(p[i * 8 + k]);
      current = &block.fibers[s->thread];  // the row is read on behalf of the lane that passed its address
      require_shared(s->row, 16, "ldmatrix");
      if (instrumented) check_shared(s->row, 16, false);
      std::memcpy(m[k], s->row, 16);
      const unsigned bank_group = 1u << ((s->row - block.smem) / 16 % 8);
      counters.ldmatrix_conflicts += (used & bank_group) != 0;
      used |= bank_group;
    }
    for (int l = 0; l < 32; ++l) {
      const int g = l >> 2, t = (l & 3) * 2;
      const uint32_t lo = kTranspose ? m[t][g] : m[g][t], hi = kTranspose ? m[t + 1][g] : m[g][t + 1];
      static_cast<LdmatrixArg*>(p[l])->r[i] = lo | hi << 16;
    }
  }
  current = caller;
}

template <float (*kToFloat)(uint16_t)>
void run_mma(void** p) {
  ++counters.mma;
  typedef float Row __attribute__((vector_size(32)));
  float a[16][16];
  Row b[16], d[16];
  for (int l = 0; l < 32; ++l) {
    const auto* s = static_cast<const MmaArg*>(p[l]);
    const int g = l >> 2, t = (l & 3) * 2;
    for (int i = 0; i < 4; ++i)
      for (int h = 0; h < 2; ++h)
        a[g + 8 * (i & 1)][t + h + 8 * (i >> 1)] = kToFloat(static_cast<uint16_t>(s->a[i] >> 16 * h));
    for (int i = 0; i < 2; ++i)
      for (int h = 0; h < 2; ++h) b[t + h + 8 * i][g] = kToFloat(static_cast<uint16_t>(s->b[i] >> 16 * h));
    for (int i = 0; i < 4; ++i) d[g + 8 * (i >> 1)][t + (i & 1)] = s->d[i];
  }
  for (int m = 0; options.truncate && m < 16; ++m)
    for (int n = 0; n < 8; ++n) {
      double product[16];
      for (int k = 0; k < 16; ++k) product[k] = static_cast<double>(a[m][k]) * b[k][n];
      d[m][n] = truncated_sum(d[m][n], product, 16);
    }
  for (int m = 0; !options.truncate && m < 16; ++m) {
    Row sum{};
    for (int k = 0; k < 16; ++k) sum += b[k] * a[m][k];
    d[m] += sum;
  }
  for (int l = 0; l < 32; ++l) {
    const int g = l >> 2, t = (l & 3) * 2;
    for (int i = 0; i < 4; ++i) static_cast<MmaArg*>(p[l])->d[i] = d[g + 8 * (i >> 1)][t + (i & 1)];
  }
}

// Operands lose the 13 bits that the hardware does not read.
void run_mma_tf32(void** p) {
  ++counters.mma;
  float a[16][8], b[8][8];
  const auto value = [](uint32_t u) {
    u &= ~0x1fffu;
    float f;
    std::memcpy(&f, &u, 4);
    return f;
  };
  for (int l = 0; l < 32; ++l) {
    const auto* s = static_cast<const MmaArg*>(p[l]);
    const int g = l >> 2, t = l & 3;
    for (int i = 0; i < 4; ++i) a[g + 8 * (i & 1)][t + 4 * (i >> 1)] = value(s->a[i]);
    for (int i = 0; i < 2; ++i) b[t + 4 * i][g] = value(s->b[i]);
  }
  for (int l = 0; l < 32; ++l) {
    auto* s = static_cast<MmaArg*>(p[l]);
    for (int i = 0; i < 4; ++i) {
      const int m = (l >> 2) + 8 * (i >> 1), n = (l & 3) * 2 + (i & 1);
      double product[8];
      float sum = 0;
      for (int k = 0; k < 8; ++k) {
        product[k] = static_cast<double>(a[m][k]) * b[k][n];
        sum += static_cast<float>(product[k]);
      }
      s->d[i] = options.truncate ? truncated_sum(s->d[i], product, 8) : s->d[i] + sum;
    }
  }
}

inline float bf16_value(uint16_t u) { return bfloat16_to_float(u); }
inline float f16_value(uint16_t u) { return half_to_float(u); }
}  // namespace

void syncwarp(unsigned mask) {
  collective(kSyncwarp, mask, nullptr, [](void**) { ++block.warps[current->warp].epoch; });
}

uint32_t shuffle(unsigned mask, uint32_t value, int source_lane) {
  ShuffleArg a{value, value, source_lane & 31};
  collective(kShuffle, mask, &a, [](void** p) {
    for (int l = 0; l < 32; ++l)
      if (auto* s = static_cast<ShuffleArg*>(p[l])) {
        if (!p[s->source]) fail("__shfl_sync: reads a lane outside the mask");
        s->out = static_cast<ShuffleArg*>(p[s->source])->in;
      }
  });
  return a.out;
}

unsigned ballot(unsigned mask, bool predicate) {
  ShuffleArg a{predicate, 0, 0};
  collective(kBallot, mask, &a, [](void** p) {
    uint32_t votes = 0;
    for (int l = 0; l < 32; ++l)
      if (p[l] && static_cast<ShuffleArg*>(p[l])->in) votes |= 1u << l;
    for (int l = 0; l < 32; ++l)
      if (p[l]) static_cast<ShuffleArg*>(p[l])->out = votes;
  });
  return a.out;
}

void cp_async(void* dst, const void* src, int bytes) {
  require_shared(dst, bytes, "cp.async");
  if (reinterpret_cast<uintptr_t>(src) % bytes) fail("cp.async: misaligned source");
  ++counters.cp_async;
  check_global(src, bytes, false);
  if (instrumented) check_shared(dst, bytes, true, Mark::in_flight);  // may be written from now on ...
  if (options.banks) log_access(__builtin_return_address(0), dst, bytes, true);
  std::memset(dst, 0xff, bytes);
  current->open.push_back({static_cast<unsigned char*>(dst), static_cast<const unsigned char*>(src), bytes});
}

void cp_commit() {
  current->groups.push_back(std::move(current->open));
  current->open.clear();
}

void cp_wait(int groups_left) {  // ... and has surely been written only here
  auto& groups = current->groups;
  while (static_cast<int>(groups.size()) > groups_left) {
    for (const Copy& c : groups.front()) {
      if (instrumented) check_shared(c.dst, c.bytes, true);
      std::memcpy(c.dst, c.src, c.bytes);
    }
    groups.erase(groups.begin());
  }
}

void ldmatrix(uint32_t* r, const void* row, int matrices, bool transpose) {
  static constexpr Op ops[2][2] = {{run_ldmatrix<2, false>, run_ldmatrix<2, true>},
                                   {run_ldmatrix<4, false>, run_ldmatrix<4, true>}};
  LdmatrixArg a{r, static_cast<const unsigned char*>(row), current->id};
  collective(kLdmatrix + matrices * 2 + transpose, ~0u, &a, ops[matrices == 4][transpose]);
}

void mma_f16(float* d, const uint32_t* a, const uint32_t* b) {
  MmaArg x{d, a, b};
  collective(kMma, ~0u, &x, run_mma<f16_value>);
}

void mma_bf16(float* d, const uint32_t* a, const uint32_t* b) {
  MmaArg x{d, a, b};
  collective(kMma + 1, ~0u, &x, run_mma<bf16_value>);
}

void mma_tf32(float* d, const uint32_t* a, const uint32_t* b) {
  MmaArg x{d, a, b};
  collective(kMma + 2, ~0u, &x, run_mma_tf32);
}

// Conversions round to nearest even, as the device's do. F16C is part of the build's instruction set.
float half_to_float(uint16_t u) {
  _Float16 h;
  std::memcpy(&h, &u, 2);
  return static_cast<float>(h);
}

uint16_t float_to_half(float f) {
  const _Float16 h = static_cast<_Float16>(f);
  uint16_t u;
  std::memcpy(&u, &h, 2);
  return u;
}

float bfloat16_to_float(uint16_t u) {
  const uint32_t w = static_cast<uint32_t>(u) << 16;
  float f;
  std::memcpy(&f, &w, 4);
  return f;
}

uint16_t float_to_bfloat16(float f) {
  uint32_t u;
  std::memcpy(&u, &f, 4);
  if (f != f) return 0x7fff;
  return static_cast<uint16_t>((u + 0x7fff + (u >> 16 & 1)) >> 16);
}

// to nearest, ties away from zero, as cvt.rna does
uint32_t float_to_tf32(float f) {
  uint32_t u;
  std::memcpy(&u, &f, 4);
  if (f != f) return 0x7fffffff;
  if ((u & 0x7f800000) != 0x7f800000) u += 0x1000;
  return u & ~0x1fffu;
}

}  // namespace emu
