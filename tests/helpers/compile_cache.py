"""A C++ compiler that keeps its objects: ``python compile_cache.py SOURCE OUT g++ FLAGS ...``.

An object is kept by what it is made of: the preprocessed source, the flags and the compiler. So unchanged code is not
compiled again, neither after a change of branch nor in a copy of the sources with a planted bug. What
``-ffile-prefix-map`` maps is mapped in the source's line markers, too: give it for the folder of such a copy.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

OBJECTS = Path(__file__).resolve().parent.parent / "_build" / "objects"  # ignored by git; `make clean` removes it
FOLDERS = ("-I", "-ffile-prefix-map=")  # flags that matter only by what they make of the source


def compile_source(source: Path, out: Path, compiler: list[str]) -> int:
    """Makes `out` and its list of headers, ``OUT.d``; returns the compiler's exit status.

    Args:
        source: C++, of any suffix.
        out: the object.
        compiler: the command with its flags.
    """
    preprocess = [*compiler, "-MMD", "-MF", f"{out}.d", "-MT", str(out), "-x", "c++", "-E", str(source)]
    text = subprocess.run(preprocess, stdout=subprocess.PIPE, check=False)
    if text.returncode:
        return text.returncode
    code = text.stdout
    for flag in compiler:
        if flag.startswith("-ffile-prefix-map="):
            _, old, new = flag.split("=")
            code = code.replace(f'"{old}/'.encode(), f'"{new}/'.encode())
    version = subprocess.run([compiler[0], "--version"], capture_output=True, check=True).stdout
    flags = " ".join(flag for flag in compiler if not flag.startswith(FOLDERS))
    digest = hashlib.sha256(b"\0".join((version, flags.encode(), code))).hexdigest()
    kept = OBJECTS / digest[:2] / f"{digest[2:32]}.o"
    if not kept.exists():
        kept.parent.mkdir(parents=True, exist_ok=True)
        partial = kept.with_suffix(f".{os.getpid()}")  # renamed when whole: other processes may want it, too
        command = [*compiler, "-x", "c++-cpp-output", "-c", "-", "-o", str(partial)]
        done = subprocess.run(command, input=text.stdout, check=False)
        if done.returncode:
            return done.returncode
        partial.replace(kept)
    shutil.copyfile(kept, out)
    return 0


if __name__ == "__main__":
    sys.exit(compile_source(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:]))
