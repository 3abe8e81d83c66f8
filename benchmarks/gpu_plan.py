"""The CUDA backend's own launch planner, asked from Python without a GPU or the extension.

The planners and their dispatcher (`csrc/cuda/*.cpp`) are plain C++: they are compiled here with a few lines of C around
them and called through ctypes. So predictions come from the very code that chooses a variant at run time.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from benchmarks.shapes import Layer

ROOT = Path(__file__).resolve().parent.parent
CSRC = ROOT / "csrc"

SHIM = r"""
#include "cuda/backend.h"
#include "cuda/model.h"

using namespace replknet_ext;

static Pass pass_of(int bwd_weight) { return bwd_weight ? Pass::bwd_weight : Pass::fwd; }
extern "C" int variant_count(int bwd_weight) { return cuda::variant_count(pass_of(bwd_weight)); }
extern "C" const char* variant_name(int bwd_weight, int i) { return cuda::variant_name(pass_of(bwd_weight), i); }

// s: n c h w kh kw ho wo pad_top pad_left; how: dtype, channels_last, flip, bwd_weight, precision, algorithm, as in the
// enums.
static Problem problem(const int64_t* s, const int* how) {
  return {s[0], s[1], s[2], s[3], s[4], s[5], s[6], s[7], s[8], s[9],
          static_cast<DType>(how[0]), how[1] != 0, how[2] != 0, Activation::none, pass_of(how[3]),
          static_cast<Precision>(how[4]), static_cast<Algorithm>(how[5])};
}

// l: the four numbers of DeviceLimits. Null, or why there is no plan.
extern "C" const char* plan(const int64_t* s, const int* how, const int* l, int variant, int64_t* out, double* cost) {
  const Problem p = problem(s, how);
  cuda::Route route;
  if (const char* why = cuda::plan_route(p, {l[0], l[1], l[2], l[3]}, variant, &route)) return why;
  const cuda::LaunchPlan& q = *route.plan;
  const int64_t numbers[] = {q.variant, q.parts, q.warps, q.shared_bytes, q.blocks_per_sm, q.blocks,
                             q.workspace_bytes, route.copied};
  for (int64_t v : numbers) *out++ = v;
  cost[0] = q.mmas;
  cost[1] = route.cycles;
  return nullptr;
}

// What the ops ask for in a step: the routes of `count` problems in turn. Returns how many plans were made.
extern "C" int64_t plan_all(const int64_t* sizes, const int* hows, int count, const int* l) {
  const int64_t before = cuda::plans_made();
  for (int i = 0; i < count; ++i) {
    cuda::Route route;
    cuda::plan_route(problem(sizes + 10 * i, hows + 6 * i), {l[0], l[1], l[2], l[3]}, -1, &route);
  }
  return cuda::plans_made() - before;
}

// The rules of cuda/model.h that all planners share.
extern "C" int resident_blocks(const int* l, int warps, int64_t shared, int register_warps) {
  return cuda::resident_blocks({l[0], l[1], l[2], l[3]}, warps, shared, register_warps);
}
// block: load, later, move, end; work: of 1, 2, ... blocks side by side
extern "C" double sm_cycles(int64_t blocks, int resident, int sms, const double* block, const double* work) {
  return cuda::sm_cycles(cuda::Waves(blocks, resident, sms), {block[0], block[1], block[2], block[3]},
                         [&](int n) { return work[n - 1]; });
}
"""


#: In the order of the enums of csrc/problem.h.
DTYPES = ("float64", "float32", "float16", "bfloat16")
PRECISIONS = ("ieee", "tf32", "bf16x3")
ALGORITHMS = ("auto", "direct", "fft")


class PlanError(ValueError):
    """The planner's reason why a variant, or every variant, can't run a problem."""


class PlannerUnavailableError(RuntimeError):
    """The planner can't be compiled here."""


@dataclass(frozen=True)
class Limits:
    """What the planner must know of a GPU; the fields of DeviceLimits."""

    capability: int
    sms: int
    shared_per_block: int
    shared_per_sm: int


H200 = Limits(90, 132, 227 << 10, 228 << 10)


@dataclass(frozen=True)
class Plan:
    """A LaunchPlan: how one launch would go. `cycles` is the model's prediction for the busiest SM."""

    variant: int
    parts: int
    warps: int
    shared_bytes: int
    blocks_per_sm: int
    blocks: int
    workspace_bytes: int
    copied: int  # 1: channels_last tensors go through NCHW copies
    name: str
    mmas: float
    cycles: float


@lru_cache(maxsize=1)
def _library() -> ctypes.CDLL:
    compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("c++")
    if compiler is None:
        raise PlannerUnavailableError("the launch planner needs a C++ compiler: g++ was not found")
    code = sorted((CSRC / "cuda").rglob("*.cpp"))
    sources = [*sorted(CSRC.glob("*.h")), *sorted((CSRC / "cuda").rglob("*.h")), *code]
    content = "\0".join([SHIM, compiler, *(path.read_text() for path in sources)])
    key = hashlib.sha256(content.encode()).hexdigest()[:16]
    target = ROOT / f"build/planner/{key}.so"
    if not target.exists():
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
        except OSError:
            target = Path(tempfile.mkdtemp(prefix="planner")) / target.name
        with tempfile.TemporaryDirectory(dir=target.parent) as folder:
            shim, built = Path(folder) / "shim.cpp", Path(folder) / "planner.so"
            shim.write_text(SHIM)
            # No contraction to fused multiply-adds: every compiler must get the same numbers.
            command = [compiler, "-std=c++17", "-O2", "-ffp-contract=off", "-shared", "-fPIC", f"-I{CSRC}"]
            done = subprocess.run(
                [*command, "-o", str(built), str(shim), *map(str, code)], capture_output=True, text=True
            )
            if done.returncode:
                raise PlannerUnavailableError(f"the launch planner does not compile:\n{done.stderr[-3000:]}")
            os.replace(built, target)
    library = ctypes.CDLL(str(target))
    library.variant_name.restype = library.plan.restype = ctypes.c_char_p
    library.sm_cycles.restype = ctypes.c_double
    library.plan_all.restype = ctypes.c_int64
    return library


def _device(limits: Limits) -> ctypes.Array[ctypes.c_int]:
    return (ctypes.c_int * 4)(limits.capability, limits.sms, limits.shared_per_block, limits.shared_per_sm)


def resident_blocks(limits: Limits, warps: int, shared_bytes: int, register_warps: int) -> int:
    """Blocks that an SM holds at once, by the rule of all planners; ``register_warps`` as in csrc/cuda/model.h."""
    shared = ctypes.c_int64(shared_bytes)
    return int(_library().resident_blocks(_device(limits), warps, shared, register_warps))


def sm_cycles(blocks: int, resident: int, sms: int, block: Sequence[float], work: Sequence[float]) -> float:
    """The busiest SM's cycles, by the rule of all planners.

    Args:
        blocks, resident: of the launch, of an SM at once.
        sms: of the GPU.
        block: cycles (load, later, move, end), see BlockCycles in csrc/cuda/model.h.
        work: cycles of 1, 2, ... ``resident`` blocks side by side.
    """
    costs, works = (ctypes.c_double * 4)(*block), (ctypes.c_double * len(work))(*work)
    return float(_library().sm_cycles(ctypes.c_int64(blocks), resident, sms, costs, works))


@lru_cache(maxsize=2)
def variants(pass_: str = "fwd") -> list[str]:
    """Names of the variants of a pass; a variant's number is its place."""
    library, which = _library(), int(pass_ == "bwd_weight")
    return [library.variant_name(which, i).decode() for i in range(library.variant_count(which))]


def _problem(
    layer: Layer, pass_: str, dtype: str, channels_last: bool, precision: str, algorithm: str
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """`sizes` and `how` as the C functions take them."""
    pad_top, pad_left = layer.padding
    if pass_ == "bwd_input":  # the forward kernel on the gradient, filter rotated and pads mirrored
        pad_top, pad_left = layer.kh - 1 - pad_top, layer.kw - 1 - pad_left
    sizes = (layer.n, layer.c, layer.h, layer.w, layer.kh, layer.kw, layer.h, layer.w, pad_top, pad_left)
    how = (DTYPES.index(dtype), int(channels_last), int(pass_ == "bwd_input"), int(pass_ == "bwd_weight"),
           PRECISIONS.index(precision), ALGORITHMS.index(algorithm))  # fmt: skip
    return sizes, how


def planner(
    step: Sequence[tuple[Layer, str]],
    dtype: str,
    limits: Limits = H200,
    *,
    channels_last: bool = False,
    precision: str = "ieee",
    algorithm: str = "auto",
) -> Callable[[], int]:
    """A function that asks for the plan of each (layer, pass) in turn, as a training step does from C++.

    It returns how many of them had to be made; the others were found in the planner's cache.
    """
    problems = [_problem(layer, pass_, dtype, channels_last, precision, algorithm) for layer, pass_ in step]
    sizes = (ctypes.c_int64 * (10 * len(step)))(*(v for s, _ in problems for v in s))
    hows = (ctypes.c_int * (6 * len(step)))(*(v for _, h in problems for v in h))
    plan_all, device = _library().plan_all, _device(limits)
    return lambda: int(plan_all(sizes, hows, len(step), device))


def plan(
    layer: Layer,
    pass_: str = "fwd",
    dtype: str = "bfloat16",
    limits: Limits = H200,
    variant: int = -1,
    *,
    channels_last: bool = False,
    precision: str = "ieee",
    algorithm: str = "auto",
) -> Plan:
    """The plan of a pass.

    Args:
        layer: the shapes.
        pass_: "fwd", "bwd_input" or "bwd_weight".
        dtype: "float64", "float32", "float16" or "bfloat16".
        limits: the GPU.
        variant: a number, or -1 for the planner's choice.
        channels_last: the memory format.
        precision, algorithm: as in the public function.

    Raises:
        PlanError: the variant can't run this layer; the message is the planner's reason.
        PlannerUnavailableError: no C++ compiler.
    """
    library = _library()
    sizes, how = _problem(layer, pass_, dtype, channels_last, precision, algorithm)
    numbers, cost = (ctypes.c_int64 * 8)(), (ctypes.c_double * 2)()
    why = library.plan((ctypes.c_int64 * 10)(*sizes), (ctypes.c_int * 6)(*how), _device(limits), variant, numbers, cost)
    if why is not None:
        raise PlanError(why.decode())
    fields: list[Any] = [*numbers, variants(pass_)[numbers[0]], *cost]
    return Plan(*fields)


def supported(
    layer: Layer, pass_: str, dtype: str, limits: Limits = H200, *, channels_last: bool = False, precision: str = "ieee"
) -> dict[int, Plan]:
    """Plans of every variant that runs a pass, by number."""
    plans = {}
    for variant in range(len(variants(pass_))):
        with suppress(PlanError):
            plans[variant] = plan(
                layer, pass_, dtype, limits, variant, channels_last=channels_last, precision=precision
            )
    return plans
