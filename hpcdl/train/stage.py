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
        name: the run's name.
        attempt: where a note of the folder is left, so that the agent can remove it if this process is killed.

    Raises:
        AgreedError: on all ranks alike: a shard of the data set is damaged.
    """
    began = time.monotonic()
    nodes = [row["node"] for row in _tell(comm, {"node": node_name()})]
    mine = [rank for rank, node in enumerate(nodes) if node == nodes[comm.rank]]
    first = comm.rank == mine[0]
    shards = staging.used_shards(manifest, splits)
    folder, why = _prepare(place, name, manifest, shards) if first else (None, "")
    rows = _tell(comm, {"folder": str(folder or ""), "why": why})
    folder = Path(rows[mine[0]]["folder"]) if rows[mine[0]]["folder"] else None
    why = rows[mine[0]]["why"]
    if folder is not None and first and attempt is not None:
        attempt.stage_note(nodes[comm.rank]).write_text(str(folder), encoding="utf-8")
    read, damage = 0, ""
    if folder is not None:
        try:
            read = staging.copy_shards(manifest, folder, shards[mine.index(comm.rank) :: len(mine)], _show_life)
        except FailedError as error:
            damage = str(error)
        except OSError as error:
            why = f"{error.filename or folder}: {error.strerror or error}"
    rows = _tell(comm, {"read": read, "why": why, "damage": damage})
    damages = [row["damage"] for row in rows if row["damage"]]
    failures = [rows[rank]["why"] for rank in mine if rows[rank]["why"]]
    ready = folder is not None and not failures and not damages
    try:
        if damages:
            raise AgreedError(damages[0])
        if ready and first and folder is not None:
            staging.finish(manifest, folder)
        elif first and not ready:
            print(
                f"hpcdl: {nodes[comm.rank]}: the data set is not staged: {failures[0]}; it is read from {manifest.folder}",
                file=sys.stderr,
            )
        _tell(comm, {})  # on every node the copy of the manifest is there now
        used = load_manifest(folder) if ready and folder is not None else manifest
        yield used, _account(rows, nodes, ready, time.monotonic() - began)
    finally:
        # The ranks of a node may still read what is unlinked here: it is gone once they have ended.
        if folder is not None and first:
            staging.remove(folder)


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
