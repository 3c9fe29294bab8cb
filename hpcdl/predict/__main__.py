"""`python -m hpcdl.predict REQUEST.json`: map a scene with a run's network; the request is what request.Request says.

Started by srun or mpirun with several tasks, these share the work; the map is the same, bit for bit, as with one.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import traceback
from pathlib import Path
from types import FrameType

from hpcdl.errors import HpcdlError
from hpcdl.predict.finish import finish
from hpcdl.predict.ranks import Ranks, join_ranks
from hpcdl.predict.rasters import write_rasters
from hpcdl.predict.request import Job, open_job, read_request
from hpcdl.predict.work import make_work, process_name


def main(request: Path) -> int:
    """Run a request; returns the exit code, unless there are several ranks and this one fails: then all end at once."""
    ranks, job = Ranks(), None
    try:
        ranks = join_ranks(os.environ)
        opened = _open(request, ranks)
        if isinstance(opened, int):
            return opened
        job = opened
        rasters = write_rasters(job, ranks)
        if ranks.rank == 0:
            finish(job, rasters)
        ranks.wait()
    except BaseException as error:  # whatever it is, the other ranks must not wait for this one
        code = _explain(error)
        if job is not None:
            shutil.rmtree(job.work, ignore_errors=True)
        sys.stdout.flush()
        sys.stderr.flush()
        ranks.abort(code)
        return code
    return 0


def _open(path: Path, ranks: Ranks) -> Job | int:
    """The job, its work folder made; or the exit code on all ranks when it is not usable, which rank 0 says once."""
    job, code = None, 0
    owner = ranks.from_first(process_name())
    if ranks.rank == 0:
        try:
            job = open_job(read_request(path), owner)
            make_work(job)
        except HpcdlError as error:
            code = _explain(error)
    if code := ranks.from_first(code):
        return int(code)
    # Rank 0 has verified it; a run that still trains may have a newer one by now.
    chosen = ranks.from_first(job and job.trained.checkpoint)
    if job is None:
        return open_job(read_request(path), owner, chosen)
    for warning in job.inputs.warnings:
        print(f"hpcdl: warning: {warning}", file=sys.stderr)
    return job


def _explain(error: BaseException) -> int:
    """Say what went wrong; returns the exit code."""
    if isinstance(error, SystemExit):
        return int(error.code or 0)
    if isinstance(error, KeyboardInterrupt):
        print("hpcdl: interrupted; nothing was written", file=sys.stderr)
        return 130
    if isinstance(error, HpcdlError) and not os.environ.get("HPCDL_DEBUG"):
        print(f"hpcdl: {error}", file=sys.stderr)
        return error.exit_code
    traceback.print_exception(error)
    return error.exit_code if isinstance(error, HpcdlError) else 1


def _terminated(number: int, frame: FrameType | None) -> None:
    # A second one, as when the parent passes on what the whole step got, must not cut the clean-up short.
    signal.signal(number, signal.SIG_IGN)
    sys.exit(128 + number)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        print("usage: python -m hpcdl.predict REQUEST.json", file=sys.stderr)
        sys.exit(2)
    # Slurm's time limit and scancel end a job with SIGTERM: leave in order, so that unfinished files go.
    signal.signal(signal.SIGTERM, _terminated)
    sys.exit(main(Path(sys.argv[1])))
