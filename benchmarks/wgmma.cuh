// wgmma of bf16 with A from registers or from shared memory, for ceilings.cu. Only sm_90a has it; elsewhere this is empty.
#pragma once
#include <cstdint>

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

namespace wgmma {

// Where a matrix lies in shared memory, without a swizzle: core matrices of 8 rows x 16 bytes, and the distance of two
// along k (leading) and along m or n (stride), in bytes.
__device__ inline uint64_t descriptor(const void* shared, uint32_t leading, uint32_t stride) {
  const auto address = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
  return static_cast<uint64_t>((address & 0x3ffff) >> 4) | static_cast<uint64_t>(leading >> 4) << 16 |
         static_cast<uint64_t>(stride >> 4) << 32;
}
__device__ inline void fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ inline void commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int kPending>
__device__ void wait() { asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory"); }

// The sums as operands, and their places in the text.
#define SUMS4(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define SUMS16(i) SUMS4(i), SUMS4(i + 4), SUMS4(i + 8), SUMS4(i + 12)
#define SUMS32(i) SUMS16(i), SUMS16(i + 16)
#define SUMS64(i) SUMS32(i), SUMS32(i + 32)
#define PLACES4 "%0, %1, %2, %3"
#define PLACES16 PLACES4 ", %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15"
#define PLACES32 PLACES16 ", %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define PLACES64                                                                                                  \
  PLACES32 ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, %50, %51" \
           ", %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"

// d += A B of m64nNk16. kRows: B's rows (along n) are contiguous instead of its columns.
template <int kN>
struct Product;

// p0 to p5: the places behind the sums.
#define PRODUCT(n, sums, p0, p1, p2, p3, p4, p5)                                                                       \
  template <>                                                                                                          \
  struct Product<n> {                                                                                                  \
    template <bool kRows = false>                                                                                      \
    static __device__ void registers(float (&d)[sums], const uint32_t (&a)[4], uint64_t b) {                           \
      asm volatile("wgmma.mma_async.sync.aligned.m64n" #n "k16.f32.bf16.bf16 {" PLACES##sums "}, {" p0 ", " p1 ", " p2 \
                   ", " p3 "}, " p4 ", 1, 1, 1, " p5 ";"                                                               \
                   : SUMS##sums(0)                                                                                     \
                   : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "n"(kRows ? 1 : 0));                          \
    }                                                                                                                  \
    static __device__ void shared(float (&d)[sums], uint64_t a, uint64_t b) {                                          \
      asm volatile("wgmma.mma_async.sync.aligned.m64n" #n "k16.f32.bf16.bf16 {" PLACES##sums "}, " p0 ", " p1          \
                   ", 1, 1, 1, 0, 0;"                                                                                  \
                   : SUMS##sums(0)                                                                                     \
                   : "l"(a), "l"(b));                                                                                  \
    }                                                                                                                  \
  };
PRODUCT(128, 64, "%64", "%65", "%66", "%67", "%68", "%69")
PRODUCT(64, 32, "%32", "%33", "%34", "%35", "%36", "%37")
PRODUCT(32, 16, "%16", "%17", "%18", "%19", "%20", "%21")
PRODUCT(8, 4, "%4", "%5", "%6", "%7", "%8", "%9")

#undef PRODUCT
#undef PLACES64
#undef PLACES32
#undef PLACES16
#undef PLACES4
#undef SUMS64
#undef SUMS32
#undef SUMS16
#undef SUMS4

}  // namespace wgmma

#endif
