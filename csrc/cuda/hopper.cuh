// PTX that sm_90a alone has: products of a warpgroup (4 warps) that run asynchronously, and barriers in shared memory. For
// other GPUs, and for the emulator, REPLKNET_EXT_SM90A is not defined and this is empty.
#pragma once
#include "ptx.cuh"

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define REPLKNET_EXT_SM90A

namespace ptx {

// ---- barriers in shared memory: 8 bytes, at shared addresses ----

PTX void barrier_init(uint32_t barrier, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;\n" ::"r"(barrier), "r"(arrivals) : "memory");
}
PTX void barrier_arrive(uint32_t barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];\n" ::"r"(barrier) : "memory");
}
// Waits until the phase of that parity is complete: 0 the first, 1 the second, 0 the third ...
PTX void barrier_wait(uint32_t barrier, int parity) {
  asm volatile(
      "{\n.reg .pred done;\nWAIT%=: mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n@done bra DONE%=;\n"
      "bra WAIT%=;\nDONE%=:\n}\n" ::"r"(barrier), "r"(parity) : "memory");
}
// Of the block's first `kThreads` threads, or others that agree on the number.
template <int kNumber, int kThreads>
PTX void barrier_sync() {
  asm volatile("bar.sync %0, %1;\n" ::"n"(kNumber), "n"(kThreads) : "memory");
}
// Before what the calling thread wrote to shared memory is read by wgmma.
PTX void proxy_fence() { asm volatile("fence.proxy.async.shared::cta;\n" ::: "memory"); }

// Registers of a thread from here on; all warps of the warpgroup.
template <int kRegisters>
PTX void more_registers() { asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;\n" ::"n"(kRegisters)); }
template <int kRegisters>
PTX void fewer_registers() { asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;\n" ::"n"(kRegisters)); }

// ---- wgmma ----

// Where B lies in shared memory, without a swizzle: core matrices of 8 columns x 16 bytes (8 of k), 128 bytes each; bytes
// between two of them along k (leading) and along n (stride). Adding b / 16 moves it by b bytes.
PTX uint64_t wgmma_descriptor(uint32_t address, int leading, int stride) {
  return static_cast<uint64_t>((address & 0x3ffff) >> 4) | static_cast<uint64_t>(leading >> 4) << 16 |
         static_cast<uint64_t>(stride >> 4) << 32;
}
// Before products whose registers were written since the last one.
PTX void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;\n" ::: "memory"); }
PTX void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;\n" ::: "memory"); }
template <int kGroupsLeft>
PTX void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;\n" ::"n"(kGroupsLeft) : "memory");
}

#define SUMS8(d) \
  "+f"((d)[0]), "+f"((d)[1]), "+f"((d)[2]), "+f"((d)[3]), "+f"((d)[4]), "+f"((d)[5]), "+f"((d)[6]), "+f"((d)[7])
#define SUMS32(d) SUMS8(d), SUMS8((d) + 8), SUMS8((d) + 16), SUMS8((d) + 24)
#define SUMS64(d) SUMS32(d), SUMS32((d) + 32)
#define PLACES32                                                                                                       \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, %22, %23, %24, " \
  "%25, %26, %27, %28, %29, %30, %31"
#define PLACES64                                                                                                  \
  PLACES32 ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, %50, %51" \
           ", %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define WGMMA(n, type, sums, operands)                                                                               \
  asm volatile("wgmma.mma_async.sync.aligned.m64n" n "k16.f32." type "." type " {" PLACES##sums "}, " operands         \
               ", 1, 1, 1, 0;\n"                                                                                       \
               : SUMS##sums(d)                                                                                         \
               : "r"(a.x), "r"(a.y), "r"(a.z), "r"(a.w), "l"(b))

// d += A B, m64 n(2 kSums) k16, sums in fp32. Every warp gives 16 rows of A and has their sums, both as for mma; the sums of
// 8 columns after those of the 8 before. d and a are in use until the product's group has been waited for.
template <bool kBf16, int kSums>
PTX void wgmma(float* d, uint4 a, uint64_t b) {
  static_assert(kSums == 64 || kSums == 32);
  if constexpr (kSums == 64) {
    if constexpr (kBf16) WGMMA("128", "bf16", 64, "{%64, %65, %66, %67}, %68");
    else WGMMA("128", "f16", 64, "{%64, %65, %66, %67}, %68");
  } else {
    if constexpr (kBf16) WGMMA("64", "bf16", 32, "{%32, %33, %34, %35}, %36");
    else WGMMA("64", "f16", 32, "{%32, %33, %34, %35}, %36");
  }
}

#undef WGMMA
#undef PLACES64
#undef PLACES32
#undef SUMS64
#undef SUMS32
#undef SUMS8

}  // namespace ptx

#endif
