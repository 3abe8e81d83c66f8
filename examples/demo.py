"""What replknet_ext does, in three parts and under five minutes: `make demo`, or `python -m examples.demo`.

1. A pretrained network on real photos, before and after `replace_depthwise`.
2. A RepLKNet trained on handwritten digits with the fast kernels, then merged.
3. Latency of the four RepLKNet-31B layers, `nn.Conv2d` beside ours.

Each part states a claim and checks it; the exit status is 1 if one does not hold.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from rich.console import Console

import replknet_ext
from examples import demo_digits, demo_latency, demo_pretrained
from replknet_ext.choices.device import cpu_name

Part = Callable[[Console, Path], bool]
PARTS: dict[str, tuple[str, Part]] = {
    "pretrained": ("A pretrained network on real photos", demo_pretrained.show),
    "digits": ("A RepLKNet, trained and merged", demo_digits.show),
    "latency": ("The speed of the four RepLKNet-31B layers", demo_latency.show),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m examples.demo", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"any of: {', '.join(PARTS)}; default: all")
    parser.add_argument("--output", type=Path, default=Path("demo_output"), help="folder for the picture and figures")
    options = parser.parse_args(arguments)
    unknown = sorted(set(options.parts) - set(PARTS))
    if unknown:
        parser.error(f"unknown part {unknown[0]!r}; the parts are {', '.join(PARTS)}")

    # Where the output is a file or a pipe there is no width to ask for; tables need 80 columns.
    console = Console() if sys.stdout.isatty() else Console(width=100)
    if not replknet_ext.HAS_EXT:
        console.print("[red]The compiled extension is missing: build it with `pip install -e .`, or run `make demo`.")
        return 1
    console.print(
        f"replknet_ext {replknet_ext.__version__}, torch {torch.__version__}, {cpu_name()}, "
        f"{torch.get_num_threads()} threads of {os.cpu_count()}, kernels for {torch.ops.replknet_ext._cpu_isa()}"
    )
    failed = []
    start = time.perf_counter()
    chosen = options.parts or list(PARTS)
    for number, name in enumerate(chosen, 1):
        title, part = PARTS[name]
        console.print()
        console.rule(f"[bold]{number} of {len(chosen)}  {title}", align="left", style="cyan")
        if not part(console, options.output):
            failed.append(name)
    console.rule(style="cyan")
    seconds = time.perf_counter() - start
    if failed:
        console.print(f"[bold red]Not as claimed: {', '.join(failed)}.[/] {seconds:.0f} s")
        return 1
    console.print(f"[bold green]All parts as claimed.[/] {seconds:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
