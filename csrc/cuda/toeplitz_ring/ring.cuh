// The schedule of the ring: which warp sums which pair of output rows when, and when input rows arrive. It knows nothing of
// how products are made, so that it serves other product instructions. A pair is whatever rows a product takes at once: 2
// or, in 4x4 tiles, 4.
//
// Input row pairs q_first ... q_end - 1 of a group of slots stream by once, group after group. An output pair meets
// table_rows of them in a row, so at most table_rows output pairs are in work at a time. The warps of a block own that many:
// pair j belongs to warp (j / kPairs) modulo the warps. A warp whose pair has met its last row stores it and goes on with
// the pair that follows it by the length of the ring.
#pragma once
#include "../ptx.cuh"
#include "args.h"

namespace replknet_ext::cuda {

// Computes the groups of slots first_group ... end_group - 1. Product has kPairs, kGroups, the warp's number `warp`, and
//   void prepare();                                      what products need besides rows, while the first of these arrive
//   void fetch(int stage, int group, int q, int pairs);  starts to copy input pairs into a stage; with the other warps
//   void load(int stage, int pair);                      the operands of an input pair that has arrived
//   void multiply(int i, int k);                         adds their products with table row k to the i-th own pair
//   void store(int i, int group, int pair);              stores the i-th own pair and clears its sums
template <class Product>
__device__ __forceinline__ void run_ring(Product& product, const ToeplitzFwdArgs& a, int first_group, int end_group) {
  constexpr int kPairs = Product::kPairs, kAhead = kRingStages - 1;
  // output pairs in work at a time
  const int length = static_cast<int>(blockDim.x >> 5) * kPairs;

  // fetching runs kAhead stages ahead of the products, across groups
  int next_group = first_group, next_q = a.q_first, next_stage = 0;
  const auto fetch = [&] {
    if (next_group < end_group) {
      product.fetch(next_stage, next_group, next_q, min(kRingStagePairs, a.q_end - next_q));
      next_q += kRingStagePairs;
      if (next_q >= a.q_end) next_q = a.q_first, next_group += Product::kGroups;
    }
    next_stage = next_stage + 1 == kRingStages ? 0 : next_stage + 1;
    ptx::cp_async_commit();
  };
#pragma unroll 1
  for (int i = 0; i < kAhead; ++i) fetch();
  product.prepare();  // the first stage's barrier shows it to all warps

  int stage = kRingStages - 1;
#pragma unroll 1
  for (int group = first_group; group < end_group; group += Product::kGroups) {
    int pair[kPairs];  // that the warp sums
#pragma unroll
    for (int i = 0; i < kPairs; ++i) pair[i] = product.warp * kPairs + i;
#pragma unroll 1
    for (int q = a.q_first, in_stage = kRingStagePairs;; ++q, ++in_stage) {
      const bool all_met = q >= a.q_end;
      if (!all_met && in_stage == kRingStagePairs) {
        in_stage = 0, stage = stage + 1 == kRingStages ? 0 : stage + 1;
        ptx::cp_async_wait<kAhead - 1>();
        __syncthreads();  // the stage has arrived, the one before it is free
        fetch();
      }
#pragma unroll
      for (int i = 0; i < kPairs; ++i)  // more than one where pairs meet no row of the image
        while (pair[i] < a.pairs && (all_met || q - pair[i] + a.shift >= a.table_rows)) {
          product.store(i, group, pair[i]);
          pair[i] += length;
        }
      if (all_met) break;
      const auto meets = [&](int i) { return pair[i] < a.pairs && q - pair[i] + a.shift >= 0; };
      bool any = false;
#pragma unroll
      for (int i = 0; i < kPairs; ++i) any |= meets(i);
      if (!any) continue;
      product.load(stage, in_stage);
#pragma unroll
      for (int i = 0; i < kPairs; ++i)
        if (meets(i)) product.multiply(i, q - pair[i] + a.shift);
    }
  }
  ptx::cp_async_wait<0>();  // of the last stages, which had nothing to fetch
}

}  // namespace replknet_ext::cuda
