"""Bugs that only nvcc's side of the kernels can have: in device branches, inline PTX, launches. ptx_run notices each.

`tests/cuda/test_ptx.py` plants them, one at a time, into a copy of the sources.
"""

from __future__ import annotations

from typing import NamedTuple


class Bug(NamedTuple):
    """A change of one file of csrc/cuda, and what shows it."""

    file: str
    text: str  # occurs once
    replacement: str
    source: str  # the .cu file that is compiled with the bug
    variant: str  # part of the names of the variants that are run


BUGS = {
    "operands of mma swapped": Bug(
        "ptx.cuh", '"r"(a.x), "r"(a.y), "r"(a.z), "r"(a.w), "r"(b[0]), "r"(b[1]));\n  else',
        '"r"(a.x), "r"(a.z), "r"(a.y), "r"(a.w), "r"(b[0]), "r"(b[1]));\n  else',
        "small_planes/weight_bf16.cu", "small_weight"),
    "no wait for cp.async": Bug(
        "ptx.cuh", 'asm volatile("cp.async.wait_group %0;\\n" ::"n"(kGroupsLeft) : "memory");', "",
        "small_planes/weight_f16.cu", "small_weight"),
    "wait for one group fewer": Bug(
        "ptx.cuh", '::"n"(kGroupsLeft) : "memory"', '::"n"(kGroupsLeft + 1) : "memory"',
        "small_planes/weight_f16.cu", "small_weight"),
    "constant of a copy's size": Bug(
        "ptx.cuh", '"l"(src), "n"(kBytes)', '"l"(src), "n"(4)', "small_planes/weight_f16.cu", "small_weight"),
    "a register is an output only": Bug(
        "ptx.cuh", 'asm volatile("" : "+r"(v));', 'asm volatile("" : "=r"(v));', "toeplitz_weight/f16.cu", "rtw_5x4_w"),
    "generic address of a copy": Bug(
        "ptx.cuh", '[%0], [%1], 16;\\n" ::"r"(shared_address(dst)), "l"(src)',
        '[%0], [%1], 16;\\n" ::"l"(dst), "l"(src)', "small_planes/weight_f16.cu", "small_weight"),
    "no opt-in to shared memory": Bug(
        "ptx.cuh", "smem > 48 << 10 ? replknet_ext::cuda::allow_shared(entry) : cudaSuccess", "cudaSuccess",
        "toeplitz_fwd/launch.cu", "rt_5x7_w_p4"),
    "matrices not transposed": Bug(
        "ptx.cuh", "ldmatrix.sync.aligned.m8n8.x4.trans.shared", "ldmatrix.sync.aligned.m8n8.x4.shared",
        "small_planes/weight_f16.cu", "small_weight"),
    "words of the funnel shift swapped": Bug(
        "ptx.cuh", "__funnelshift_r(low, high, bits)", "__funnelshift_r(high, low, bits)",
        "toeplitz_weight/f16.cu", "rtw_"),
    "halves of a pair swapped": Bug(
        "ptx.cuh", "__floats2half2_rn(low, high)", "__floats2half2_rn(high, low)", "stencil/half.cu", "3_half"),
    "third quarter of a quad": Bug(
        "ptx.cuh", "*reinterpret_cast<const double2*>(p + 2)", "*reinterpret_cast<const double2*>(p + 1)",
        "fma/f64.cu", "f64"),
    "block and grid swapped": Bug(
        "ptx.cuh", "cudaLaunchKernel(entry, grid, block,", "cudaLaunchKernel(entry, block, grid,",
        "fma/launch.cu", "fma_8x4"),
    "attribute of a device": Bug("launch.cu", "10 * major + minor", "10 * minor + major", "launch.cu", "fma_7x4"),
    "matrices for part of a warp": Bug(
        "ptx.cuh", 'asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared',
        'if (threadIdx.x & 1) asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared',
        "small_planes/weight_f16.cu", "small_weight"),
    "members of a shuffle": Bug(
        "ptx.cuh", "return __shfl_sync(~0u, v, 0);", "return __shfl_sync(1u, v, 0);", "fma/f64.cu", "f64"),
    "no barrier between rounds": Bug(
        "fma/fma.cuh", "if (round > 0) __syncthreads();", "", "fma/f64.cu", "f64"),
    "no barrier of a warp": Bug(
        "toeplitz_weight/toeplitz_weight.cuh", "+ k % 2] = acc[j + i][d][k];\n    __syncwarp();",
        "+ k % 2] = acc[j + i][d][k];", "toeplitz_weight/f16.cu", "rtw_3x2_w"),
    "lanes of a shuffle": Bug(
        "ptx.cuh", "return __shfl_xor_sync(~0u, v, mask);", "return __shfl_xor_sync(~0u, v, mask, 16);",
        "fma/f64.cu", "f64"),
    "wait for one stage of a ring fewer": Bug(
        "toeplitz_ring/ring.cuh", "cp_async_wait<kAhead - 1>", "cp_async_wait<kAhead>",
        "toeplitz_ring/f16.cu", "ring_3x"),
    "no barrier between the stages of a ring": Bug(
        "toeplitz_ring/ring.cuh", "__syncthreads();  // the stage has", "// the stage has",
        "toeplitz_ring/f16.cu", "ring_3x"),
    "no barrier of a transpose": Bug(
        "transpose.cu", "    __syncthreads();\n    if (a.vectors_out)", "    if (a.vectors_out)", "transpose.cu",
        "stencil_3"),
    "16 bytes of a misaligned tensor": Bug(
        "transpose.cu", "reinterpret_cast<uintptr_t>(tensor) % 16 == 0 &&", "(void)tensor,", "transpose.cu",
        "stencil_3"),
    "no proxy fence before products of what was copied": Bug(
        "toeplitz_wgmma/toeplitz_wgmma.cuh", "    ptx::proxy_fence();\n", "", "toeplitz_wgmma/f16.cu", "wgmma_"),
    "stage published one copy too early": Bug(
        "toeplitz_wgmma/toeplitz_wgmma.cuh", "cp_async_wait<kAhead - 1>", "cp_async_wait<kAhead>",
        "toeplitz_wgmma/f16.cu", "wgmma_"),
    "stage not waited for": Bug(
        "toeplitz_wgmma/toeplitz_wgmma.cuh", "          ptx::barrier_wait(full(stage), parity);\n", "",
        "toeplitz_wgmma/f16.cu", "wgmma_"),
    "registers of A written while a product reads them": Bug(
        "toeplitz_wgmma/toeplitz_wgmma.cuh", "ptx::wgmma_wait<kProducts - 1>", "ptx::wgmma_wait<kProducts>",
        "toeplitz_wgmma/f16.cu", "wgmma_"),
    "stage freed while products read it": Bug(
        "toeplitz_wgmma/toeplitz_wgmma.cuh", "free(held), held = stage;", "free(stage);",
        "toeplitz_wgmma/f16.cu", "wgmma_"),
    "distances of a descriptor swapped": Bug(
        "toeplitz_wgmma/toeplitz_wgmma.cuh", "kChunkBytes, 128, 256)", "kChunkBytes, 256, 128)",
        "toeplitz_wgmma/f16.cu", "wgmma_"),
    "warps without a pair multiply": Bug(
        "toeplitz_wgmma/toeplitz_wgmma.cuh", "(meets ? k : a.table_rows)", "(k < a.table_rows ? k : a.table_rows)",
        "toeplitz_wgmma/f16.cu", "wgmma_"),
    "more registers than are free": Bug(
        "toeplitz_wgmma/toeplitz_wgmma.cuh", "more_registers<112>", "more_registers<120>",
        "toeplitz_wgmma/f16.cu", "wgmma_"),
}  # fmt: skip
