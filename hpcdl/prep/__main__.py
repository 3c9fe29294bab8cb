"""`python -m hpcdl.prep REQUEST.json`: make a data set; the request is what runner.Request says.

Started by srun or mpirun with three or more tasks, these become the workers; else processes of this machine do.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from types import FrameType

from hpcdl.errors import HpcdlError
from hpcdl.prep.runner import read_request, run


def main() -> int:
    """Run a request; returns the exit code."""
    if len(sys.argv) != 2:
        print("usage: python -m hpcdl.prep REQUEST.json", file=sys.stderr)
        return 2
    # Slurm's time limit and scancel end a job with SIGTERM: leave in order, so that the folder's lock goes.
    signal.signal(signal.SIGTERM, _terminated)
    try:
        run(read_request(Path(sys.argv[1])))
    except HpcdlError as error:
        if os.environ.get("HPCDL_DEBUG"):
            raise
        print(f"hpcdl: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("hpcdl: interrupted; finished shards stay, the same command goes on from there", file=sys.stderr)
        return 130
    return 0


def _terminated(number: int, frame: FrameType | None) -> None:
    # A second one, as when the parent passes on what the whole step got, must not cut the clean-up short.
    signal.signal(number, signal.SIG_IGN)
    sys.exit(128 + number)


if __name__ == "__main__":
    sys.exit(main())
