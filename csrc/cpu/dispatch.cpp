#include "cpu.h"

#include <cstdlib>
#include <cstring>

namespace replknet_ext::cpu {
namespace {

const Isa& detect() {
#if defined(__x86_64__)
  const char* cap = std::getenv("REPLKNET_EXT_CPU_ISA");
  const bool allow_avx2 = cap == nullptr || std::strcmp(cap, "base") != 0;
  const bool allow_avx512 = allow_avx2 && (cap == nullptr || std::strcmp(cap, "avx2") != 0);
  __builtin_cpu_init();
  if (allow_avx512 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
    return avx512::table;
  if (allow_avx2 && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return avx2::table;
#endif
  return base::table;
}

}  // namespace

const Isa& isa() {
  static const Isa& chosen = detect();
  return chosen;
}

}  // namespace replknet_ext::cpu
