"""What the state of a job means: a class, or no sample; and which jobs of a log are no samples."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from hpcdl.errors import UsageError
from hpcdl.prep.joblog.record import FAILED, FINAL, STATES
from hpcdl.prep.plan import SPLITS

Ints = npt.NDArray[np.int64]

CLASSES = ("completed", "failed")
DROPPED = -1


def state_numbers(*states: str) -> list[int]:
    """Indices into STATES."""
    return [STATES.index(state) for state in states]


def labels_of_states(cancelled: str, preempted: str) -> Ints:
    """The label of each state, DROPPED for those that make no sample.

    Args:
        cancelled: what cancelled jobs count as: drop, completed or failed.
        preempted: the same of preempted jobs.
    """
    meaning = {"drop": DROPPED, "completed": 0, "failed": 1}
    labels = np.full(len(STATES), DROPPED, np.int64)
    labels[state_numbers("COMPLETED")] = 0
    labels[state_numbers(*FAILED)] = 1
    labels[state_numbers("CANCELLED")] = meaning[cancelled]
    labels[state_numbers("PREEMPTED")] = meaning[preempted]
    return labels


def check_classes(labels: Ints, states: Mapping[str, int]) -> None:
    """Refuse logs without a job of one class.

    Raises:
        UsageError: lists the states that there are.
    """
    for index, name in enumerate(CLASSES):
        if not (labels == index).any():
            counts = ", ".join(f"{state} {count}" for state, count in states.items())
            raise UsageError(
                f"no job counts as {name}; the states are: {counts}; say what the others count as, such as by "
                f"--cancelled {name}, or give a longer log"
            )


def count_left_out(labels: Ints, state: Ints, split: npt.NDArray[np.int8]) -> dict[str, dict[str, int]]:
    """Jobs of each split that are no samples, by what became of them."""
    unfinished = [name for name in STATES if name not in FINAL]
    kinds = {"cancelled": ["CANCELLED"], "preempted": ["PREEMPTED"], "revoked": ["REVOKED"], "unfinished": unfinished}
    dropped = labels == DROPPED
    return {
        name: {
            f"num_{kind}": int((dropped & (split == number) & np.isin(state, state_numbers(*states))).sum())
            for kind, states in kinds.items()
        }
        for number, name in enumerate(SPLITS)
    }
