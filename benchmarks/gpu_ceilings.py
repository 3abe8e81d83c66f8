"""The step `ceilings` of the GPU benchmark: what this GPU gives at most, one resource at a time.

`benchmarks/fit.py` turns the result into the constants of csrc/cuda/model.h. The kernels are in ceilings.cu.
"""

from __future__ import annotations

import ctypes
import statistics
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from benchmarks.harness import ROOT

#: Unit, number of its kernel in ceilings.cu, floating-point operations of a block's round.
REGISTERS = (
    ("mma bf16, A and B fixed", 0, 64 * 4096),
    ("mma bf16, A fixed", 1, 64 * 4096),
    ("mma bf16, B fixed", 2, 64 * 4096),
    ("mma bf16, both vary", 3, 64 * 4096),
    ("mma tf32, A fixed", 4, 64 * 2048),
    ("ffma", 5, 256 * 16 * 2),
)
PIECES = (32, 16, 4)  # bytes that are read of a sector of 32
BLOCK = 256  # threads
L2_BYTES = 16 << 20  # read again and again: it must fit into the near half of the cache
#: Bytes of a piece in a cluster's all-to-all: of a stage of the planned wgmma kernel, and of one on mma.sync.
CLUSTER_PIECES = (1792, 6272)
#: Images, pixels and channels of the tensor that is copied between memory formats: larger than the L2 cache.
COPIED = (256, 56 * 56, 128)
#: What wgmma computes from each kind of descriptor, as ceilings.cu numbers them.
VALUES = ("A from registers, B [n][k]", "A from registers, B [k][n]", "A and B from shared memory", "periodic A")


class CeilingError(RuntimeError):
    """A kernel of ceilings.cu that did not run."""


def _median(run: Callable[[], object], samples: int) -> float:
    from replknet_ext.tuning.measure import timed

    run()
    return statistics.median(timed(run) for _ in range(samples))


class Ceilings:
    """The library made of ceilings.cu, on the current device."""

    def __init__(self, library: str) -> None:
        import torch

        self.torch = torch
        self._library = ctypes.CDLL(library)
        p = torch.cuda.get_device_properties(0)
        self.multiprocessors = p.multi_processor_count
        self.hopper = (p.major, p.minor) == (9, 0)
        most = 8 * self.multiprocessors
        self.out = torch.empty(most * BLOCK, device="cuda")
        self.cycles = torch.zeros(most, dtype=torch.int64, device="cuda")

    def call(self, name: str, *arguments: object) -> None:
        """Launches a kernel on the current stream: integers, tensors, or ctypes values.

        Raises:
            CeilingError: a CUDA error.
        """
        tensors = self.torch.Tensor
        passed = [ctypes.c_void_p(a.data_ptr()) if isinstance(a, tensors) else a for a in arguments]
        stream = ctypes.c_void_p(self.torch.cuda.current_stream().cuda_stream)
        error = getattr(self._library, name)(*passed, stream)
        if error:
            raise CeilingError(f"ceilings.cu, {name}: CUDA error {error}")

    def ticks(self, blocks: int) -> float:
        """Cycles of the median block of the last launch."""
        return float(self.cycles[:blocks].double().median())

    def registers(self) -> list[dict[str, Any]]:
        """mma.sync and fused multiply-adds from registers."""
        rows = []
        for unit, kind, flop in REGISTERS:
            for per_sm in (1, 2, 4):
                blocks, rounds = self.multiprocessors * per_sm, 16000 // per_sm
                run = partial(self.call, "registers_rate", kind, blocks, rounds, self.out, self.cycles)
                seconds = _median(run, 9)
                row = {"unit": unit, "warps_per_sm": 8 * per_sm, **self._rates(blocks * rounds * flop, seconds, blocks)}
                if unit != "ffma":  # four tensor cores in an SM
                    row["cycles_per_mma"] = round(self.ticks(blocks) * 4 / (per_sm * rounds * 64), 3)
                rows.append(row)
        return rows

    def wgmma(self) -> list[dict[str, Any]]:
        """wgmma with A from registers or shared memory; [] where the GPU is no Hopper."""
        rows = []
        for n in (128, 64, 32, 8) if self.hopper else ():
            for source in ("registers", "shared memory"):
                for per_sm in (1, 2):
                    blocks, rounds = self.multiprocessors * per_sm, 8000 // per_sm
                    run = partial(self.call, "wgmma_rates", n, int(source != "registers"), blocks, rounds, self.out)
                    seconds = _median(partial(run, self.cycles), 9)
                    flop = blocks * rounds * 8 * 2 * 64 * n * 16
                    rows.append({"n": n, "a": source, "warps_per_sm": 8 * per_sm, **self._rates(flop, seconds, blocks)})
        return rows

    def _rates(self, flop: int, seconds: float, blocks: int) -> dict[str, float]:
        return {
            "tflops": round(flop / seconds * 1e-12, 1),
            "sm_ghz": round(self.ticks(blocks) / seconds * 1e-9, 3),
        }

    def wgmma_values(self) -> dict[str, bool]:
        """Whether each kind of descriptor means what the planned kernel takes it to mean: small integers, exact."""
        torch, right = self.torch, {}
        for kind, name in enumerate(VALUES) if self.hopper else ():
            g = torch.Generator().manual_seed(kind)
            b = torch.randint(-4, 5, (32, 16), generator=g).double()
            if name == "periodic A":
                given = torch.randint(-4, 5, (9, 8, 8), generator=g).double()
                a = torch.cat([torch.cat([given[i], given[i + 1]], 1) for i in range(8)])
            else:
                given = a = torch.randint(-4, 5, (64, 16), generator=g).double()
            out = torch.full((64, 32), float("nan"), device="cuda")
            self.call("wgmma_value", kind, given.bfloat16().cuda(), b.bfloat16().cuda(), out)
            right[name] = bool(torch.equal(out.double().cpu(), a @ b.T))
        return right

    def l2(self) -> dict[str, float]:
        """Bytes of touched sectors that an SM reads from the L2 cache per cycle, by the piece taken of each."""
        rates = {}
        buffer = self.torch.zeros(L2_BYTES, dtype=self.torch.uint8, device="cuda")
        for piece in PIECES:
            blocks, rounds = self.multiprocessors * 4, 400
            size = ctypes.c_int64(L2_BYTES)
            self.call("l2_rates", piece, blocks, rounds, buffer, size, self.out, self.cycles)  # fills the cache
            self.call("l2_rates", piece, blocks, rounds, buffer, size, self.out, self.cycles)
            sectors = 4 * rounds * 8 * (BLOCK // 32) * (16 if piece == 32 else 32)  # of an SM
            rates[str(piece)] = round(32 * sectors / self.ticks(blocks), 2)
        return rates

    def clusters(self) -> dict[str, Any]:
        """Bytes that a block of a cluster of 8 sends, and receives, per cycle: all to all."""
        rates: dict[str, Any] = {}
        for piece in CLUSTER_PIECES if self.hopper else ():
            most, rounds = ctypes.c_int(), 2000
            run = partial(self.call, "dsmem_rates", piece)
            run(8, 1, self.cycles, ctypes.byref(most))
            blocks = 8 * max(1, most.value)
            run(blocks, rounds, self.cycles, ctypes.byref(most))
            rates[str(piece)] = {
                "bytes_per_cycle": round(8 * piece * rounds / self.ticks(blocks), 2), "clusters": most.value,
            }  # fmt: skip
        return rates

    def transposes(self) -> dict[str, dict[str, float]]:
        """TB/s read and written by copies between NCHW and channels_last: our kernel, and torch's `contiguous`."""
        torch, rates = self.torch, {}
        images, pixels, channels = COPIED
        for size, dtype in ((2, torch.bfloat16), (4, torch.float32)):
            for name, rows, columns in (("to NCHW", pixels, channels), ("to channels_last", channels, pixels)):
                given = torch.empty(images, rows, columns, dtype=dtype, device="cuda").normal_()
                to = torch.empty(images, columns, rows, dtype=dtype, device="cuda")
                sizes = [ctypes.c_int64(number) for number in (images, rows, columns)]
                own = _median(partial(self.call, "transposed", size, *sizes, given, to), 15)
                if not torch.equal(to, given.mT):
                    raise CeilingError(f"{name}, {size} bytes: not the transposed tensor")
                by_torch = _median(partial(to.copy_, given.mT), 15)
                moved = 2e-12 * size * images * pixels * channels
                rates[f"{name}, {size} bytes"] = {
                    "own_tb_per_s": round(moved / own, 3), "torch_tb_per_s": round(moved / by_torch, 3),
                }  # fmt: skip
        return rates

    def nodes(self) -> dict[str, float]:
        """Microseconds of a graph node that does nothing, and of one that waits for one load, in a chain of each."""
        from replknet_ext.tuning.measure import capture

        source, calls = self.torch.zeros(BLOCK, device="cuda"), 1000
        found = {}
        for loads, name in ((0, "empty"), (1, "one load")):

            def launch(_: int, loads: int = loads) -> None:
                self.call("node", loads, source, self.out, self.multiprocessors)

            found[name] = round(_median(capture(launch, calls, 1), 9) / calls * 1e6, 3)
        return found


def bandwidth() -> dict[str, float]:
    """Of copies in memory, and the rate of a large matrix product, with its clocks left as they are."""
    import torch

    size = min(1 << 31, torch.cuda.get_device_properties(0).total_memory // 8)
    source = torch.empty(size // 4, dtype=torch.int32, device="cuda").random_()
    target = torch.empty_like(source)
    found = {"copy_tb_per_s": round(2 * size / _median(partial(target.copy_, source), 15) * 1e-12, 3)}
    del source, target
    a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in "ab")
    seconds = _median(lambda: torch.mm(a, b), 20)
    for _ in range(int(1.0 / seconds)):  # a second of work, for whoever reads the clocks meanwhile
        torch.mm(a, b)
    return found | {"bf16_gemm_tflops": round(2 * 8192**3 / seconds * 1e-12, 1)}


@contextmanager
def library(nvcc: str, capability: tuple[int, int], compile_: Callable[[list[str]], str | None]) -> Iterator[Ceilings]:
    """Builds ceilings.cu for this GPU alone.

    Args:
        nvcc: its path.
        capability: of the GPU; Hopper's own instructions need the target 9.0a.
        compile_: runs a command; what it printed if it failed.

    Raises:
        CeilingError: it does not compile.
    """
    arch = "90a" if capability == (9, 0) else f"{capability[0]}{capability[1]}"
    with tempfile.TemporaryDirectory() as folder:
        target = f"{folder}/ceilings.so"
        flags = ["-O3", "-std=c++17", f"-gencode=arch=compute_{arch},code=sm_{arch}", "-shared", "-Xcompiler", "-fPIC"]
        problem = compile_([nvcc, *flags, "-o", target, str(ROOT / "benchmarks" / "ceilings.cu")])
        if problem is not None:
            raise CeilingError(f"ceilings.cu does not compile:\n{problem}")
        yield Ceilings(target)


#: What is measured, in order of what it decides; each part can fail by itself.
PARTS: dict[str, Callable[[Ceilings], Any]] = {
    "wgmma_values": Ceilings.wgmma_values,
    "registers_only": Ceilings.registers,
    "wgmma": Ceilings.wgmma,
    "l2_bytes_per_cycle": Ceilings.l2,
    "transposes": Ceilings.transposes,
    "graph_node_us": Ceilings.nodes,
    "clusters": Ceilings.clusters,
}
