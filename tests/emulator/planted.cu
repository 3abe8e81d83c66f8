// Small kernels with one planted bug each: they prove that the emulator's detectors fire. "none" is the clean kernel.
#include "ptx.cuh"

struct PlantedArgs {
  const uint32_t* x;
  uint32_t* y;
  int bug;
};

#define PLANTED_BUGS(X)                                                                                           \
  X(clean_stream) X(no_barrier_after_copy) X(no_barrier_before_reuse) X(no_wait) X(late_wait) X(pending_at_exit)    \
  X(clean) X(uninitialised) X(shared_out_of_bounds) X(write_after_write) X(no_syncwarp) X(readers_then_writer)      \
  X(two_barriers) X(exit_before_barrier) X(half_at_barrier) X(lane_exits) X(mask_mismatch) X(mixed_collectives)     \
  X(ldmatrix_out_of_bounds) X(ldmatrix_misaligned) X(copy_misaligned) X(global_out_of_bounds) X(global_twice)       \
  X(write_read_only) X(ldmatrix_conflict) X(load_conflict) X(wide_conflict)
#define PLANTED_NAME(name) k_##name,
enum Bug { PLANTED_BUGS(PLANTED_NAME) kBugCount };
#undef PLANTED_NAME

// 64 threads stream 4 tiles of 64 words through two buffers by cp.async and write every tile back reversed.
__global__ void stream_kernel(const PlantedArgs a) {
  DYN_SMEM(smem);
  uint32_t* tile = reinterpret_cast<uint32_t*>(smem);
  const int t = threadIdx.x;
  for (int i = 0; i < 2; ++i) {
    ptx::cp_async<4>(tile + i * 64 + t, a.x + i * 64 + t);
    ptx::cp_async_commit();
  }
  for (int i = 0; i < 4; ++i) {
    if (a.bug == k_late_wait || i < 3) {
      if (a.bug == k_late_wait && i > 1) ptx::cp_async_wait<2>();
      else if (a.bug != k_no_wait) ptx::cp_async_wait<1>();
    } else {
      ptx::cp_async_wait<0>();
    }
    if (a.bug != k_no_barrier_after_copy) __syncthreads();
    a.y[i * 64 + t] = tile[(i & 1) * 64 + 63 - t];
    if (a.bug != k_no_barrier_before_reuse) __syncthreads();
    if (i < 2) ptx::cp_async<4>(tile + (i & 1) * 64 + t, a.x + (i + 2) * 64 + t);
    if (i < 2) ptx::cp_async_commit();
  }
  if (a.bug == k_pending_at_exit) ptx::cp_async<4>(tile + t, a.x + t);
  else ptx::cp_async_wait<0>();
}

__global__ void odd_kernel(const PlantedArgs a) {
  DYN_SMEM(smem);
  uint32_t* words = reinterpret_cast<uint32_t*>(smem);
  const int t = threadIdx.x, lane = t & 31, warp = t >> 5;
  uint32_t r[4] = {};
  if (a.bug != k_uninitialised || t != 5) words[t] = a.x[t];
  for (int i = 64 + t; i < 1024; i += 64) words[i] = i;
  __syncthreads();
  switch (a.bug) {
    case k_uninitialised: a.y[t] = words[t ^ 1]; break;
    case k_shared_out_of_bounds: a.y[t] = words[t == 63 ? 1024 : t]; break;
    case k_write_after_write: words[t >> 1] = t; break;
    case k_no_syncwarp:
      words[t] = t;
      a.y[t] = words[t ^ 1];
      break;
    case k_readers_then_writer: {  // every lane reads a word of its warp, then one of the readers writes it
      a.y[t] = words[warp];
      if (lane == 31) words[warp] = 1;
      break;
    }
    case k_two_barriers:
      if (warp == 0) __syncthreads();
      else __syncthreads();
      break;
    case k_exit_before_barrier:
      if (t < 16) return;
      __syncthreads();
      break;
    case k_half_at_barrier:
      if (t < 32) __syncthreads();
      break;
    case k_lane_exits:
      if (lane == 3) return;
      __syncwarp();
      break;
    case k_mask_mismatch: __syncwarp(lane < 16 ? 0xffffu : ~0u); break;
    case k_mixed_collectives:
      if (lane < 16) __syncwarp();
      else a.y[t] = __shfl_sync(~0u, t, 0);
      break;
    case k_ldmatrix_out_of_bounds: ptx::ldmatrix_x4(r, smem + 4096 - 16 * 31 + lane * 16); break;
    case k_ldmatrix_misaligned: ptx::ldmatrix_x4(r, smem + 8 + lane * 16); break;
    case k_copy_misaligned:
      ptx::cp_async<16>(smem + 16 * t, a.x + 1);
      ptx::cp_async_wait<0>();
      break;
    case k_global_out_of_bounds: a.y[t] = a.x[t == 63 ? 256 : t]; break;
    case k_global_twice: a.y[t >> 1] = t; break;
    case k_write_read_only: const_cast<uint32_t*>(a.x)[t] = t; break;
    case k_ldmatrix_conflict: ptx::ldmatrix_x4(r, smem + (lane & 7) * 128); break;      // 4 matrices, 7 rows too many
    case k_load_conflict: a.y[t] = words[lane * 2 + warp * 64]; break;                  // 2 words a bank
    case k_wide_conflict: {                                                             // quarters: 4 words a bank
      const uint4 v = ptx::load_shared(reinterpret_cast<uint4*>(smem) + lane * 4);
      a.y[t] = v.x;
      break;
    }
    case k_clean: {
      ptx::ldmatrix_x4(r, smem + lane * 16);
      const uint4 v = ptx::load_shared(reinterpret_cast<uint4*>(smem) + lane);
      a.y[t] = words[lane] + v.x + r[0];
      break;
    }
    default: break;
  }
}

// One warp: ldmatrix of x's 32 rows of 16 bytes, then a product; for the test of the fragment layouts.
// x: 128 words for shared memory | a [32][4] | b [32][2], y: what ldmatrix gave [32][4] | d [32][4]
__global__ void fragments_kernel(const PlantedArgs args) {
  DYN_SMEM(smem);
  const int lane = threadIdx.x;
  for (int i = 0; i < 4; ++i) reinterpret_cast<uint32_t*>(smem)[lane * 4 + i] = args.x[lane * 4 + i];
  __syncwarp();
  uint32_t r[4];
  ptx::ldmatrix_x4(r, smem + lane * 16);
  const uint32_t* a = args.x + 128 + lane * 4;
  float d[4] = {1, 2, 3, 4};
  const uint4 quad = make_uint4(a[0], a[1], a[2], a[3]);
  const uint32_t* b = args.x + 256 + lane * 2;
  if (args.bug == 2) ptx::mma_tf32(d, quad, b);
  else if (args.bug == 1) ptx::mma<true>(d, quad, b);
  else ptx::mma<false>(d, quad, b);
  for (int i = 0; i < 4; ++i) {
    args.y[lane * 4 + i] = r[i];
    reinterpret_cast<float*>(args.y)[128 + lane * 4 + i] = d[i];
  }
}

const char* planted_name(int bug) {
#define PLANTED_NAME(name) #name,
  static const char* const names[] = {PLANTED_BUGS(PLANTED_NAME)};
#undef PLANTED_NAME
  return bug < kBugCount ? names[bug] : nullptr;
}

int launch_fragments(int type, const void* x, void* y) {  // 0: fp16, 1: bf16, 2: tf32
  const PlantedArgs a{static_cast<const uint32_t*>(x), static_cast<uint32_t*>(y), type};
  return launch_kernel(fragments_kernel, dim3(1), dim3(32), 512, nullptr, a);
}

int launch_planted(int bug, const void* x, void* y) {
  const PlantedArgs a{static_cast<const uint32_t*>(x), static_cast<uint32_t*>(y), bug};
  const bool streams = bug <= k_pending_at_exit;
  return launch_kernel(streams ? stream_kernel : odd_kernel, dim3(1), dim3(64), streams ? 512 : 4096, nullptr, a);
}
