"""Compiles the Triton kernels for GPUs that are not there, and counts what the compiler made of them.

    python tests/helpers/triton_compile.py 90 [NAME ...]  # JSON: kernel -> registers, spills, tensor instructions, ...
    python tests/helpers/triton_compile.py --table           # the budgets of this triton, to paste into test_compile.py

A process of its own: triton compiles only where its interpreter is off. Launches are recorded, not made: the arguments
are those of the real call, on meta tensors.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT)]

import torch  # noqa: E402
import triton  # noqa: E402
from triton.backends.compiler import GPUTarget  # noqa: E402

from replknet_ext.backends.triton import launch, sliding_fwd, toeplitz_fwd, toeplitz_weight  # noqa: E402

ARCHS = (80, 90, 100, 120)
TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
TYPES = {torch.float16: "*fp16", torch.bfloat16: "*bf16", torch.float32: "*fp32"}
#: Opcodes of tensor core products: up to Ada and on consumer Blackwell, Hopper, data center Blackwell.
TENSOR = ("HMMA", "HGMMA", "UTCHMMA")

#: name -> (pass, dtype, precision, (n, c, size, kernel), bias)
KERNELS: dict[str, tuple[str, torch.dtype, str, tuple[int, int, int, int], bool]] = {
    "fwd-56-k31-bf16": ("fwd", torch.bfloat16, "ieee", (64, 128, 56, 31), True),
    "fwd-14-k27-fp16": ("fwd", torch.float16, "ieee", (64, 512, 14, 27), False),
    "fwd-7-k13-bf16": ("fwd", torch.bfloat16, "ieee", (64, 1024, 7, 13), False),
    "fwd-28-k29-tf32": ("fwd", torch.float32, "tf32", (64, 256, 28, 29), False),
    "fwd-56-k7-fp32": ("fwd", torch.float32, "ieee", (64, 128, 56, 7), True),
    "weight-56-k31-bf16": ("bwd_weight", torch.bfloat16, "ieee", (64, 128, 56, 31), False),
    "weight-28-k29-fp16-bias": ("bwd_weight", torch.float16, "ieee", (64, 256, 28, 29), True),
}


class _Recorder:
    """Stands for a kernel and notes how it was launched."""

    def __init__(self, kernel: Any, calls: list[tuple[Any, tuple[Any, ...], dict[str, Any]]]) -> None:
        self.kernel, self.calls = kernel, calls

    def __getitem__(self, grid: Any) -> Any:
        return lambda *args, **options: self.calls.append((self.kernel, args, options))


@contextlib.contextmanager
def recorded() -> Iterator[list[tuple[Any, tuple[Any, ...], dict[str, Any]]]]:
    """Launches inside the block, which are not made."""
    calls: list[tuple[Any, tuple[Any, ...], dict[str, Any]]] = []
    places = [(toeplitz_fwd, "filter_table"), (toeplitz_fwd, "toeplitz_fwd"), (sliding_fwd, "sliding_fwd"),
              (toeplitz_weight, "toeplitz_weight"),
              (toeplitz_weight, "add_diagonals")]  # fmt: skip
    kernels = [getattr(module, name) for module, name in places]
    for (module, name), kernel in zip(places, kernels, strict=True):
        setattr(module, name, _Recorder(kernel, calls))
    try:
        yield calls
    finally:
        for (module, name), kernel in zip(places, kernels, strict=True):
            setattr(module, name, kernel)


def compiled(call: tuple[Any, tuple[Any, ...], dict[str, Any]], capability: int) -> Any:
    """What triton makes of a launch on a GPU of `capability`, with its usual specialisation of arguments."""
    kernel, args, options = call
    values = dict(zip(kernel.arg_names, args, strict=False))
    values |= {key: value for key, value in options.items() if key in kernel.arg_names}
    options = {key: value for key, value in options.items() if key not in kernel.arg_names}
    signature, constants, attributes = {}, {}, {}
    for i, parameter in enumerate(kernel.params):
        value = values[parameter.name]
        if parameter.is_constexpr or (isinstance(value, int) and value == 1):
            signature[parameter.name], constants[(i,)] = "constexpr", value
        else:
            tensor = isinstance(value, torch.Tensor)
            wide = not tensor and abs(value) >= 2**31
            signature[parameter.name] = TYPES[value.dtype] if tensor else "i64" if wide else "i32"
            if tensor or value % 16 == 0:
                attributes[(i,)] = [["tt.divisibility", 16]]
    source = triton.compiler.ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=attributes)
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)


def measured(result: Any) -> dict[str, int]:
    """Registers, spills (instructions), shared memory and tensor instructions; `loop`: those of the main loop."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(result.asm["cubin"])
        file.flush()

        def tool(*command: str) -> str:
            line = [str(TOOLS / command[0]), *command[1:], file.name]
            return subprocess.run(line, capture_output=True, text=True, check=True).stdout

        usage, sass = tool("cuobjdump", "-res-usage"), tool("nvdisasm", "-c")
    registers = re.findall(r"REG:(\d+)", usage)[0]
    labels: dict[str, int] = {}
    ops: list[str] = []
    loop: list[str] = []
    for line in sass.splitlines():
        if label := re.match(r"^\.(L_x_\w+):", line):
            labels[label[1]] = len(ops)
        elif instruction := re.match(r"^\s+/\*[0-9a-f]+\*/\s+(.*?);", line):
            ops.append(re.sub(r"^@!?U?P\w+\s+", "", instruction[1]).split()[0].split(".")[0])
            back = re.search(r"\bBRA.*?(L_x_\w+)", instruction[1])
            if back and back[1] in labels:
                body = ops[labels[back[1]] :]
                if len(body) > len(loop) and any(op in (*TENSOR, "FFMA") for op in body):
                    loop = body
    count = Counter(ops)
    return {
        "registers": int(registers), "spills": count["LDL"] + count["STL"], "shared": result.metadata.shared,
        "tensor": sum(count[op] for op in TENSOR), "async": count["LDGSTS"], "loop": len(loop),
    }  # fmt: skip


def kernel(name: str, capability: int) -> dict[str, int]:
    """Compiles the main kernel of one of `KERNELS`."""
    pass_, dtype, precision, (n, c, size, k), bias = KERNELS[name]
    x = torch.empty(n, c, size, size, dtype=dtype, device="meta")
    filters, column = torch.empty(c, 1, k, k, dtype=dtype, device="meta"), torch.empty(c, dtype=dtype, device="meta")
    pads = (k // 2,) * 4
    with recorded() as calls:
        if pass_ == "fwd":
            launch.convolve(x, filters, column if bias else None, pads, "relu", precision, False)
        else:
            launch.correlate(x, x, pads, precision, bias)
    main = [call for call in calls if call[0].__name__ in ("toeplitz_fwd", "sliding_fwd", "toeplitz_weight")]
    return measured(compiled(main[0], capability))


def main(arguments: list[str]) -> None:
    """Command line."""
    assert os.environ.get("TRITON_INTERPRET") != "1"
    if arguments == ["--table"]:
        print(f"# triton {triton.__version__}")
        for name in KERNELS:
            rows = [kernel(name, capability) for capability in ARCHS]
            registers = tuple(row["registers"] for row in rows)
            tensor = tuple(row["tensor"] for row in rows)
            print(f'    "{name}": ({registers}, {tensor}),  # {rows}', flush=True)
        return
    names = arguments[1:] or list(KERNELS)
    print(json.dumps({name: kernel(name, int(arguments[0])) for name in names}))


if __name__ == "__main__":
    main(sys.argv[1:])
