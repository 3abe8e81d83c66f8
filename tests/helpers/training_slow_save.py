"""The command line with checkpoints that take longer to write than a run takes to end; says when it writes one."""

import sys
import time
from typing import Any

from replknet_ext.cli import main
from replknet_ext.training.checkpoints import Folder

_save = Folder.save


def _slow(self: Folder, *content: Any, **options: Any) -> None:
    if not options["number"]:  # not those after epochs
        print("saving", file=sys.stderr, flush=True)
        time.sleep(3)
    _save(self, *content, **options)


Folder.save = _slow  # type: ignore[method-assign]

if __name__ == "__main__":
    main()
