"""Bugs planted in the ring kernels: the schedule, the products in it, the plan."""

from __future__ import annotations

from emulator_harness import Case
from mutants import SMALLEST, Mutants, keep_lines

ONE_BLOCK = (90, 1, 227 << 10, 1 << 10)  # one SM that holds one block, which computes all groups of slots
KEPT = ("ring_5x4_w_g2", "ring_3x7_w", "ring_5x6_t", "ring_3x5_t_sq")
RING, KERNEL, PLAN = "toeplitz_ring/ring.cuh", "toeplitz_ring/toeplitz_ring.cuh", "toeplitz_ring/plan.cpp"

# name: (file, text, replacement)
BUGS = {
    "no barrier between stages": (RING, "        __syncthreads();\n        fetch();", "        fetch();"),
    "fetched before the barrier": (
        RING,
        "        __syncthreads();\n        fetch();",
        "        fetch();\n        __syncthreads();",
    ),
    "no wait for a stage": (RING, "        ptx::cp_async_wait<kAhead - 1>();\n", ""),
    "wait for one stage fewer": (RING, "cp_async_wait<kAhead - 1>", "cp_async_wait<kAhead>"),
    "one stage too few": (PLAN, "kRingStages * v.groups", "(kRingStages - 1) * v.groups"),
    "a stage of one pair": (PLAN, "kRingStagePairs) * in_chunks_", "kRingStagePairs - 1) * in_chunks_"),
    "the first stage of a group is that of the last": (
        RING,
        "if (next_q >= a.q_end) next_q = a.q_first,",
        "if (next_q > a.q_end) next_q = a.q_first,",
    ),
    "a group's rows are those before": (RING, "next_group += Product::kGroups;", "next_group += 0;"),
    "stored one row early": (RING, ">= a.table_rows)) {", ">= a.table_rows - 1)) {"),
    "the last pairs are not stored": (RING, "(all_met || ", "("),
    "only one pair is stored at a time": (RING, "while (pair[i] < a.pairs", "if (pair[i] < a.pairs"),
    "the next pair is one too far": (RING, "pair[i] += length;", "pair[i] += length + 1;"),
    "table row of the neighbour": (RING, "multiply(i, q - pair[i] + a.shift)", "multiply(i, q - pair[0] + a.shift)"),
    "pairs that have not begun": (RING, "&& q - pair[i] + a.shift >= 0;", "&& true;"),
    "ring shorter than the filter": (
        PLAN,
        "ceil_div(std::min(r_.table_rows, r_.pairs), v.pairs)",
        "std::max(1, std::min(r_.table_rows, r_.pairs) / v.pairs - 1)",
    ),
    "rows end too early": (PLAN, "rows.pairs - 1 - rows.shift", "rows.pairs - 2 - rows.shift"),
    "rows begin too late": (PLAN, "-rows.shift);", "1 - rows.shift);"),
    "sums are kept": (KERNEL, "t.acc[g][i][c][e] = 0.f;", "continue;"),
    "warps share a scratch": (KERNEL, " + warp * transpose_bytes(kChunks)", ""),
    "no barrier before the table": (KERNEL, "    __syncthreads();\n    build_table", "    build_table"),
    "the filter over the first stage": (KERNEL, "uint16_t*>(place(kRingStages))", "uint16_t*>(place(0))"),
    "tiles without a halo": (KERNEL, "product.chunk0 + a.d_first;", "product.chunk0;"),
    "blocks share groups": (KERNEL, "blockIdx.y) * kGroups * a.turns;", "blockIdx.y) * kGroups;"),
    "groups share an image": (KERNEL, "channel, group + g, pair", "channel, group, pair"),
    "filter rows of 2x8 tiles": (KERNEL, "a.ky0 - 2 * kLine + 1", "a.ky0 - 1"),
    "filter columns of 2x8 tiles": (KERNEL, "kColumns * (d_first - 1)", "8 * (d_first - 1)"),
    "outputs as 2x8 tiles": (KERNEL, "store_pair<kBf16, kChunks, kLine>", "store_pair<kBf16, kChunks>"),
    "rows and columns of 2x8 tiles": (PLAN, "kToeplitzRing[variant].line - 1", "0"),
    "second pair of a stage": (KERNEL, "pair * Warp::kIn * 256", "0 * Warp::kIn * 256"),
}  # fmt: skip

CASES = [
    Case(24, 2, 39, 28, (13, 29), bias=True, activation="relu", limits=ONE_BLOCK),
    Case(41, 1, 9, 26, (7, 25), limits=ONE_BLOCK, flip=True),
    Case(64, 1, 21, 28, (5, 29), limits=(90, 2, 227 << 10, 1 << 10)),
    Case(1, 1, 43, 56, (5, 13), bias=True),
    Case(2, 1, 31, 61, (7, 21), shift=1, limits=SMALLEST),
    Case(8, 1, 20, 21, 5, (40, 40, 2, 2), bias=True),
    Case(8, 2, 33, 56, (31, 13), dtype="bfloat16"),
    Case(9, 1, 43, 45, (9, 7), bias=True),
]

MUTANTS = Mutants(
    "toeplitz_ring",
    BUGS,
    CASES,
    keep_lines("toeplitz_ring/variants.h", "TOEPLITZ_RING_VARIANTS", KEPT),
    shared=("toeplitz_fwd/geometry.cpp",),
)
