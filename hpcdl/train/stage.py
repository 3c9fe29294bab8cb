"""`--stage`: the ranks of a node together copy the data set to the node's own disk and train from there."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from hpcdl.attempts import AttemptDir
from hpcdl.errors import FailedError
from hpcdl.pulse import own_pulse
from hpcdl.ranks import node_name
from hpcdl.shards import staging
from hpcdl.shards.manifest import Manifest, load_manifest
from hpcdl.train.communicator import Communicator
from hpcdl.train.guards import AgreedError


@contextlib.contextmanager
def staged(
    manifest: Manifest,
    splits: Sequence[str],
    place: str | None,
    name: str,
    attempt: AttemptDir | None,
    comm: Communicator,
) -> Iterator[tuple[Manifest, dict[str, Any]]]:
    """The data set to train from, and what staging took; the copies are removed afterwards.

    Called on all ranks together. On a node whose disk has no room or fails, its ranks read the data set where it is, and
    the log says so; sample order and results are the same.

    Args:
        splits: what is needed of the data set.
        place: where, see staging.stage_folder.
        name: of this attempt at the run, as no other one is called.
        attempt: where a note of the folder is left, so that the agent can remove it if this process is killed.

    Raises:
        AgreedError: on all ranks alike: a shard of the data set is damaged.
    """
    began = time.monotonic()
    nodes = [row["node"] for row in _tell(comm, {"node": node_name()})]
    mine = [rank for rank, node in enumerate(nodes) if node == nodes[comm.rank]]
    first = comm.rank == mine[0]
    shards = staging.used_shards(manifest, splits)
    with contextlib.ExitStack() as until_end:
        folder, why = _prepare(place, name, manifest, shards) if first else (None, "")
        if folder is not None:
            # The ranks of a node may still read what is unlinked here: it is gone once they have ended.
            copies = until_end.enter_context(contextlib.ExitStack())
            copies.callback(staging.remove, folder)
            if attempt is not None:
                with contextlib.suppress(OSError):
                    attempt.stage_note(nodes[comm.rank]).write_text(str(folder), encoding="utf-8")
        head = _tell(comm, {"folder": str(folder or ""), "why": why})[mine[0]]
        place_here, why = Path(head["folder"]) if head["folder"] else None, head["why"]
        read, damage = 0, ""
        if place_here is not None:
            try:
                read = staging.copy_shards(manifest, place_here, shards[mine.index(comm.rank) :: len(mine)], _show_life)
            except FailedError as error:
                damage = str(error)
            except OSError as error:
                why = f"{error.filename or place_here}: {error.strerror or error}"
        rows = _tell(comm, {"read": read, "why": why, "damage": damage})
        if damages := [row["damage"] for row in rows if row["damage"]]:
            raise AgreedError(damages[0])
        failures = [rows[rank]["why"] for rank in mine if rows[rank]["why"]]
        if first and not failures and folder is not None:
            try:
                staging.finish(manifest, folder)
            except OSError as error:
                failures = [f"{folder}: {error.strerror}"]
        # On every node the copy of the manifest is there now, or is known not to be.
        failures = _tell(comm, {"failures": failures})[mine[0]]["failures"]
        if failures and first:
            print(
                f"hpcdl: {nodes[comm.rank]}: the data set is not staged: {failures[0]}; it is read from {manifest.folder}",
                file=sys.stderr,
            )
            if folder is not None:
                copies.close()
        used = manifest if failures or place_here is None else load_manifest(place_here)
        yield used, _account(rows, nodes, used is not manifest, time.monotonic() - began)


def _prepare(place: str | None, name: str, manifest: Manifest, shards: Sequence[Any]) -> tuple[Path | None, str]:
    """The folder on this node, or why there is none."""
    try:
        folder = staging.stage_folder(place, name, manifest.digest)
        staging.make_room(folder, shards)
    except OSError as error:
        return None, str(error)
    return folder, ""


def _tell(comm: Communicator, row: Mapping[str, Any]) -> list[Any]:
    """Every rank's row, on every rank."""
    return [json.loads(data) for data in comm.gather(json.dumps(row).encode())]


def _show_life() -> None:
    own_pulse().advance(0)


def _account(
    rows: Sequence[Mapping[str, Any]], nodes: Sequence[str], staged_here: bool, seconds: float
) -> dict[str, Any]:
    """For the log and the metrics; `read_bytes` is of all ranks together."""
    read = sum(row["read"] for row in rows)
    return {"seconds": seconds, "read_bytes": read, "num_nodes": len(set(nodes)), "staged": staged_here}
