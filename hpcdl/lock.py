"""The lock of a run folder: one attempt at a time may write it. A lock whose holder is dead is taken over."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

from hpcdl.attempts import attempt_of, create_whole
from hpcdl.errors import UsageError
from hpcdl.ranks import node_name
from hpcdl.rundir import RunDir

SILENCE_S = 12.0
"""A holder whose attempt has not beaten for so long is dead; only asked where the scheduler does not know its job."""

READ_PAUSES_S = (0.1, 0.4, 1.5)


@dataclass(frozen=True)
class Holder:
    """Who writes a run."""

    attempt: str
    job_id: str
    restart: int
    host: str
    token: str


def read_lock(run: RunDir) -> Holder | None:
    """Who holds the lock; None when nobody does, or when it stays unreadable."""
    for pause in READ_PAUSES_S:
        try:
            return Holder(**json.loads(run.lock.read_text(encoding="utf-8")))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError):
            time.sleep(pause)  # a file system in trouble is no reason to take anybody's lock away
    return None


def still_ours(run: RunDir, attempt: str) -> bool:
    """Whether that attempt is the one that may write."""
    holder = read_lock(run)
    return holder is not None and holder.attempt == attempt


def take_lock(run: RunDir, attempt: str, job_id: str, restart: int, is_active: Callable[[str], bool | None]) -> Holder:
    """Become the run's writer.

    Args:
        is_active: whether a job may still be running, None when that cannot be told.

    Raises:
        UsageError: another job writes it.
    """
    me = Holder(attempt, job_id, restart, node_name(), secrets.token_hex(8))
    while not create_whole(run.lock, json.dumps(asdict(me)).encode()):
        _make_way(run, me, is_active)
    return me


def release_lock(run: RunDir, holder: Holder) -> None:
    """Give the lock back, if it is still this holder's."""
    if read_lock(run) == holder:
        run.lock.unlink(missing_ok=True)


def _make_way(run: RunDir, me: Holder, is_active: Callable[[str], bool | None]) -> None:
    """Remove the lock of a dead holder."""
    holder = read_lock(run)
    if holder is None and not run.lock.exists():
        return
    if holder is not None and not _is_dead(run, holder, me, is_active):
        raise UsageError(
            f"{run.name}: job {holder.job_id} on {holder.host} is writing this run (attempt {holder.attempt}); wait for "
            f"it, or `hpcdl cancel {run.name}`"
        )
    # Renaming takes the very file away that was read: of two that find a dead holder, only one gets it.
    aside = run.path / f".lock.{me.token}.old"
    try:
        run.lock.rename(aside)
    except FileNotFoundError:
        return
    try:
        data = aside.read_bytes()
        if holder is not None and json.loads(data).get("token") != holder.token:
            create_whole(run.lock, data)  # somebody was quicker, and this was the new lock
    except (OSError, ValueError):
        pass
    finally:
        aside.unlink(missing_ok=True)


def _is_dead(run: RunDir, holder: Holder, me: Holder, is_active: Callable[[str], bool | None]) -> bool:
    if holder.job_id == me.job_id:
        # The scheduler starts a job again only after it has ended it.
        return holder.restart < me.restart
    active = is_active(holder.job_id)
    if active is not None:
        return not active
    attempt = attempt_of(run, holder.attempt)
    before, until = attempt.beats(), time.monotonic() + SILENCE_S
    while time.monotonic() < until:
        time.sleep(0.5)
        if attempt.beats() != before:
            return False
    return True
