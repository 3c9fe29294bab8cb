"""Ask a cluster's own accounting: run sacct, and keep its answer in a file that is then read as any dump."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from hpcdl.errors import FailedError, TimeOutError, UsageError

# The job's name is last: of all columns it alone may hold the separator. sacct is asked for those that its release has.
FIELDS = (
    "JobID", "JobIDRaw", "Cluster", "Partition", "QOS", "Account", "Group", "User", "UID", "Submit", "Start", "End",
    "Elapsed", "ExitCode", "State", "AllocNodes", "AllocCPUS", "ReqNodes", "ReqCPUS", "ReqMem", "ReqTRES", "Timelimit",
    "TotalCPU", "MaxRSS", "JobName",
)  # fmt: skip


def fetch(path: Path, start: str, end: str, timeout_s: int) -> None:
    """Write the jobs of all users between two times to a new file, which only its owner may read.

    Args:
        path: of the file; it appears when sacct has ended well.
        start, end: as sacct takes them, such as 2024-05-01 or now-30days.
        timeout_s: how long sacct may take.

    Raises:
        UsageError: there is no sacct here, or the file cannot be written.
        FailedError: sacct has failed.
        TimeOutError: it did not end in time.
    """
    if shutil.which("sacct") is None:
        raise UsageError(
            "no sacct on PATH; run this on a machine that has Slurm's commands, or write a dump there by "
            "`sacct --parsable2 --allusers --duplicates` and give it as --logs without --live"
        )
    for name, value in (("since", start), ("until", end)):
        if not value.strip() or value.startswith("-"):
            raise UsageError(
                f"{name} {value!r} is no time; give one as sacct takes it, such as 2024-05-01 or now-30days"
            )
    known = {word.lower() for word in _run(["sacct", "--helpformat"], timeout_s).split()}
    fields = [name for name in FIELDS if name.lower() in known or not known]
    command = ["sacct", "--parsable2", "--allusers", "--duplicates", f"--format={','.join(fields)}"]
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        try:
            _run([*command, f"--starttime={start}", f"--endtime={end}"], timeout_s, handle)
        finally:
            os.close(handle)
        temporary.replace(path)
    except OSError as error:
        raise UsageError(f"{path}: cannot be written: {error.strerror}") from None
    finally:
        temporary.unlink(missing_ok=True)


def _run(command: list[str], timeout_s: int, output: int | None = None) -> str:
    """What a command writes to stdout, empty when that goes to the open file `output`."""
    # The user's own settings would change columns and times.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SACCT_")}
    environment["SLURM_TIME_FORMAT"] = "standard"
    with tempfile.TemporaryFile() as errors:
        try:
            done = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE if output is None else output,
                stderr=errors,
                timeout=timeout_s,
                env=environment,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise TimeOutError(
                f"sacct did not end within {timeout_s} s; ask for a shorter time by --since and --until, or raise "
                "--live-timeout-s"
            ) from None
        except OSError as error:
            raise FailedError(f"sacct cannot be run: {error.strerror}") from None
        errors.seek(0)
        said = " ".join(errors.read(2000).decode("utf-8", "replace").split())
    if done.returncode != 0:
        raise FailedError(f"sacct ended with code {done.returncode}: {said or 'it says nothing'}")
    return done.stdout.decode("utf-8", "replace") if output is None else ""
