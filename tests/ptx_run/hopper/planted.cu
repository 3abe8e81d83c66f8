// A small kernel of Hopper's instructions, with one planted bug each: they prove that ptx_run's detectors fire. Names that
// begin with "clean" have none.
//     planted NAME SCHEDULE    # prints what ptx_run says, or "wrong values", or nothing
#include <cuda_runtime.h>

#include <cstdio>
#include <string>
#include <vector>

#include "../ptx.h"

#define PLANTED(X)                                                                                                         \
  X(clean) X(clean_noinc) X(clean_shared_a) X(clean_f16) X(clean_tx) X(read_sums) X(edit_sums) X(edit_a) X(no_commit)        \
  X(wait_for_one_fewer) X(freed_before_wait) X(no_wgmma_fence) X(no_proxy_fence) X(no_proxy_fence_noinc)                     \
  X(no_proxy_fence_shared_a) X(not_full) X(not_empty) X(other_parity) X(no_arrival) X(one_arrival_more)                      \
  X(one_arrival_fewer) X(no_barrier_after_init) X(tx_never) X(copies_not_waited_for) X(registers_pool)       \
  X(registers_fewer) X(no_named_barrier) X(named_barrier_of_others) X(named_barrier_never) X(stride) X(leading) X(swizzle)   \
  X(transposed) X(one_warp_fewer) X(another_descriptor) X(another_shape) X(exit_in_flight) X(read_mbarrier) X(scale_0)       \
  X(beyond_shared)
#define PLANTED_NAME(name) k_##name,
enum Bug { PLANTED(PLANTED_NAME) kBugs };
#undef PLANTED_NAME

constexpr int kTiles = 5, kStages = 2, kN = 16, kTile = 16 * kN * 2;                    // bytes of a tile of B: [k / 8][n][8]
constexpr int kFull = 0, kEmpty = 16, kB = 128, kA = kB + kStages * kTile, kOut = kA + 2 * 64 * 32;  // in shared memory
constexpr int kShared = kOut + 8 * 128;
struct Args {
  const uint16_t *a, *b;  // [2][tile][64][16], [tile][16 / 8][kN][8]
  float* d;               // [2][64][kN], and the exchange [2][128]
};

__device__ uint64_t descriptor(uint32_t address, uint32_t leading, uint32_t stride) {
  return uint64_t((address & 0x3ffff) >> 4) | uint64_t(leading >> 4) << 16 | uint64_t(stride >> 4) << 32;
}
__device__ void wait_for(uint32_t barrier, uint32_t parity) {
  asm volatile(
      "{\n.reg .pred done;\nW%=: mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n@done bra D%=;\nbra W%=;\nD%=:\n}"
      ::"r"(barrier), "r"(parity) : "memory");
}
__device__ void arrive(uint32_t barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}
__device__ void proxy_fence() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

#define SUMS "{%0, %1, %2, %3, %4, %5, %6, %7}"
#define SUM_OPERANDS(d) \
  "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7])
#define REGISTERS(type, transposed, adds)                                                                               \
  asm volatile("wgmma.mma_async.sync.aligned.m64n16k16.f32." type "." type " " SUMS ", {%8, %9, %10, %11}, %12, " adds    \
               ", -1, 1, " transposed ";"                                                                                 \
               : SUM_OPERANDS(d)                                                                                          \
               : "r"(v[0]), "r"(v[1]), "r"(v[2]), "r"(v[3]), "l"(b))

template <int bug>
__global__ void __launch_bounds__(384, 1) planted(const __grid_constant__ Args a) {
  extern __shared__ __align__(128) unsigned char smem[];
  const uint32_t base = static_cast<uint32_t>(__cvta_generic_to_shared(smem));
  constexpr bool noinc = bug == k_clean_noinc || bug == k_no_proxy_fence_noinc;
  constexpr bool shared_a = bug == k_clean_shared_a || bug == k_no_proxy_fence_shared_a;
  constexpr bool tx = bug == k_clean_tx || bug == k_tx_never;
  const int group = __shfl_sync(~0u, threadIdx.x >> 7, 0), t = threadIdx.x & 127, warp = t >> 5, lane = t & 31;
  if (threadIdx.x == 0)
    for (int s = 0; s < kStages; ++s) {
      const int full = bug == k_one_arrival_more ? 33 : bug == k_one_arrival_fewer ? 16 : 32;
      asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(base + kFull + 8 * s), "r"(full) : "memory");
      asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(base + kEmpty + 8 * s), "r"(8) : "memory");
    }
  if (bug != k_no_barrier_after_init) __syncthreads();
  if (group == 2) {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(bug == k_registers_fewer ? 176 : 40));
    if (warp > 0) return;
    for (int i = 0; i < kTiles; ++i) {
      const int s = i % kStages;
      const uint32_t full = base + kFull + 8 * s;
      if (i >= kStages && bug != k_not_empty) wait_for(base + kEmpty + 8 * s, (i / kStages - 1) & 1);
      if (tx && lane == 0) {
        asm volatile("mbarrier.expect_tx.relaxed.cta.shared::cta.b64 [%0], %1;" ::"r"(full), "r"(bug == k_tx_never ? 16 : 0));
      }
      asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(base + kB + s * kTile + lane * 16),
                   "l"(a.b + i * 16 * kN + lane * 8) : "memory");
      if (noinc) {
        asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" ::"r"(full) : "memory");
      } else {
        asm volatile("cp.async.commit_group;" ::: "memory");
        if (bug != k_copies_not_waited_for) asm volatile("cp.async.wait_group 0;" ::: "memory");
        if (bug != k_no_proxy_fence) proxy_fence();
        if (bug != k_no_arrival || i != 3) arrive(full);
      }
    }
    asm volatile("cp.async.wait_all;" ::: "memory");
    return;
  }
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(bug == k_registers_pool ? 240 : 232));
  float d[kN / 2] = {}, other[4] = {};
  for (int i = 0; i < kTiles; ++i) {
    const int s = i % kStages;
    const uint16_t* const own = a.a + ((group * kTiles + i) * 64 + 16 * warp) * 16;
    uint32_t v[4];
    for (int r = 0; r < 4; ++r)
      v[r] = *reinterpret_cast<const uint32_t*>(own + (lane / 4 + r % 2 * 8) * 16 + lane % 4 * 2 + r / 2 * 8);
    const uint32_t shared = kA + group * 64 * 32;
    if (shared_a) {  // [m / 8][k / 8][8][8]
      uint32_t* const to = reinterpret_cast<uint32_t*>(smem + shared);
      for (int r = 0; r < 4; ++r) to[((2 * warp + r % 2) * 2 + r / 2) * 32 + lane] = v[r];
      if (bug != k_no_proxy_fence_shared_a) proxy_fence();
      asm volatile("bar.sync %0, 128;" ::"r"(1 + group) : "memory");
    }
    if (bug != k_not_full) wait_for(base + kFull + 8 * s, (bug == k_other_parity ? 1 : 0) ^ (i / kStages & 1));
    if (bug == k_clean_noinc) proxy_fence();
    for (float& one : d) asm volatile("" : "+f"(one));  // else the compiler may move what sets it behind the fence
    for (uint32_t& one : v) asm volatile("" : "+r"(one));
    if (bug != k_no_wgmma_fence) asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
    uint64_t b = descriptor(base + (bug == k_beyond_shared ? kShared : kB + s * kTile), bug == k_leading ? 128 : kN * 16,
                            bug == k_stride ? 256 : 128);
    if (bug == k_swizzle) b |= uint64_t(1) << 62;
    if (bug == k_another_descriptor && warp == 2) b = descriptor(base + kB, kN * 16, 128);
    if (bug == k_clean_f16) REGISTERS("f16", "0", "1");
    else if (bug == k_transposed) REGISTERS("bf16", "1", "1");
    else if (bug == k_scale_0) REGISTERS("bf16", "0", "0");
    else if (shared_a)
      asm volatile("wgmma.mma_async.sync.aligned.m64n16k16.f32.bf16.bf16 " SUMS ", %8, %9, 1, -1, 1, 0, 0;"
                   : SUM_OPERANDS(d) : "l"(descriptor(base + shared, 128, 256)), "l"(b));
    else if (bug != k_one_warp_fewer || warp < 3) REGISTERS("bf16", "0", "1");
    if (bug == k_another_shape)
      asm volatile("wgmma.mma_async.sync.aligned.m64n8k16.f32.bf16.bf16 {%0, %1, %2, %3}, {%4, %5, %6, %7}, %8, 1, 1, 1, 0;"
                   : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]) : "r"(v[0]), "r"(v[1]), "r"(v[2]), "r"(v[3]), "l"(b));
    if (bug == k_read_sums) asm volatile("mov.f32 %0, %1;" : "=f"(other[0]) : "f"(d[1]));
    if (bug == k_edit_sums) asm volatile("mov.f32 %0, 0f00000000;" : "+f"(d[2]));
    if (bug != k_no_commit) asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
    if (bug == k_edit_a) {
      asm volatile("mov.b32 %0, 0;" : "+r"(v[0]));
      other[0] += __uint_as_float(v[0]);
    }
    if (bug == k_freed_before_wait) {
      __syncwarp();
      if (lane == 0) arrive(base + kEmpty + 8 * s);
      for (int k = 0; k < 8; ++k) __syncwarp();
      asm volatile("bar.sync 3, 256;" ::: "memory");  // time for the producer
    }
    if (bug == k_wait_for_one_fewer) asm volatile("wgmma.wait_group.sync.aligned 1;" ::: "memory");
    else if (bug != k_exit_in_flight || i + 1 < kTiles) asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
    if (shared_a) asm volatile("bar.sync %0, 128;" ::"r"(1 + group) : "memory");
    __syncwarp();
    if (lane == 0 && bug != k_freed_before_wait) arrive(base + kEmpty + 8 * s);
  }
  if (bug == k_exit_in_flight) return;
  // the other group's numbers, through a named barrier of the two
  uint32_t* const out = reinterpret_cast<uint32_t*>(smem + kOut);
  out[threadIdx.x] = threadIdx.x;
  if (bug == k_named_barrier_of_others) asm volatile("bar.sync %0, 128;" ::"r"(1 + group) : "memory");
  else if (bug == k_named_barrier_never) asm volatile("bar.sync 1, 288;" ::: "memory");
  else if (bug != k_no_named_barrier) {
    asm volatile("bar.arrive %0, 256;" ::"r"(4 + group) : "memory");
    asm volatile("bar.sync %0, 256;" ::"r"(5 - group) : "memory");
  }
  a.d[2 * 64 * kN + threadIdx.x] = static_cast<float>(out[(threadIdx.x + 128) % 256]) + other[0];
  if (bug == k_read_mbarrier && threadIdx.x == 0) a.d[2 * 64 * kN] = __uint_as_float(*reinterpret_cast<uint32_t*>(smem));
  for (int k = 0; k < kN / 2; ++k)
    a.d[(group * 64 + 16 * warp + lane / 4 + k / 2 % 2 * 8) * kN + k / 4 * 8 + lane % 4 * 2 + k % 2] = d[k];
}

template <int bug>
cudaError_t launch(const std::string& name, const Args& args) {
  if constexpr (bug == kBugs) {
    return cudaErrorInvalidValue;
  } else {
#define PLANTED_NAME(one) #one,
    static const char* const names[] = {PLANTED(PLANTED_NAME)};
#undef PLANTED_NAME
    if (name != names[bug]) return launch<bug + 1>(name, args);
    planted<bug><<<1, 384, kShared>>>(args);
    return cudaGetLastError();
  }
}

int main(int argc, char** argv) {
  if (argc != 3) return std::fprintf(stderr, "planted NAME SCHEDULE\n"), 2;
  const std::string name = argv[1];
  ptx_run::options.seed = std::stoull(argv[2]);
  const bool f16 = name == "clean_f16";
  std::vector<uint16_t> a(2 * kTiles * 64 * 16), b(kTiles * 16 * kN);
  std::vector<float> d(2 * 64 * kN + 256);
  const auto bits = [&](int v) -> uint16_t {  // of -3 to 3
    const int magnitude = v < 0 ? -v : v, sign = v < 0 ? 0x8000 : 0;
    const int bf16[] = {0, 0x3f80, 0x4000, 0x4040}, half[] = {0, 0x3c00, 0x4000, 0x4200};
    return static_cast<uint16_t>(sign | (f16 ? half : bf16)[magnitude]);
  };
  const auto of_a = [](size_t i) { return static_cast<int>(i * 7 + i / 16 * 3 + i / 1024) % 7 - 3; };
  const auto of_b = [](size_t i) { return static_cast<int>(i * 5 + i / 8 + i / 128 * 2) % 7 - 3; };
  for (size_t i = 0; i < a.size(); ++i) a[i] = bits(of_a(i));
  for (size_t i = 0; i < b.size(); ++i) b[i] = bits(of_b(i));
  ptx_run::watch(a.data(), 2 * a.size(), false, "a"), ptx_run::watch(b.data(), 2 * b.size(), false, "b");
  ptx_run::watch(d.data(), 4 * d.size(), true, "d");
  if (const cudaError_t e = launch<0>(name, {a.data(), b.data(), d.data()}))
    return std::printf("%s\n", e == cudaErrorInvalidValue ? "there is no such bug" : cudaGetErrorString(e)), 1;
  bool right = true;
  for (int group = 0; group < 2; ++group)
    for (int m = 0; m < 64; ++m)
      for (int n = 0; n < kN; ++n) {
        int sum = 0;
        for (int i = 0; i < kTiles; ++i)
          for (int k = 0; k < 16; ++k)
            sum -= of_a(static_cast<size_t>(((group * kTiles + i) * 64 + m) * 16 + k)) *
                   of_b(static_cast<size_t>((i * 2 + k / 8) * kN * 8 + n * 8 + k % 8));
        right &= d[static_cast<size_t>((group * 64 + m) * kN + n)] == static_cast<float>(sum);
      }
  for (int t = 0; t < 256; ++t) right &= d[static_cast<size_t>(2 * 64 * kN + t)] == static_cast<float>((t + 128) % 256);
  return std::printf(right ? "" : "wrong values\n"), !right;
}
