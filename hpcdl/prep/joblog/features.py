"""Features of jobs, in two parts that never mix: what is known at submission, and what is known at the end only.

Scales and vocabularies are fitted on the jobs of the train split.
"""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from hpcdl.errors import UsageError
from hpcdl.prep.joblog.history import Floats, Ints
from hpcdl.prep.joblog.record import CATEGORIES, ENDED, FAILED, REQUEST, STATES
from hpcdl.prep.joblog.table import Jobs

_MEASURED = ("cpus", "nodes", "memory_mb", "timelimit_s", "gpus")
_FLAGS = ("array", "dependency")

SUBMIT = (
    *_MEASURED, "since_previous_s", "cpus_unknown", "nodes_unknown", "memory_unknown", "timelimit_unknown", "first",
    *_FLAGS, "hour_sin", "hour_cos", "weekday_sin", "weekday_cos",
)  # fmt: skip
"""Names of the submission features; the measured ones are scaled, the others are 0 to 1 or -1 to 1."""

TIMING = ("since_previous_s", "first", "hour_sin", "hour_cos", "weekday_sin", "weekday_cos")
"""Those that only say when a job was submitted."""

_MIN_SALT_BYTES = 16

_LOGGED = ("elapsed_s", "wait_s", "cpu_time_s", "max_rss_mb")
OUTCOME = ("completed", "failed", "cancelled", "other", "exit_nonzero", *_LOGGED)
"""Names of the features of a job that has ended."""

_COMPLETED_STATE = np.array([state == "COMPLETED" for state in STATES])
_FAILED_STATE = np.array([state in FAILED for state in STATES])
_CANCELLED_STATE = np.array([state == "CANCELLED" for state in STATES])


@dataclass(frozen=True, eq=False)
class Scale:
    """stored = (log(1 + value) - mean) / std, column by column; unknown values are stored as 0."""

    mean: Floats
    std: Floats

    def apply(self, values: Floats) -> Floats:
        """R × C values, scaled."""
        return np.nan_to_num((_logged(values) - self.mean) / self.std, nan=0.0)

    def to_json(self, names: tuple[str, ...]) -> dict[str, Any]:
        """Mean and std by name."""
        return {
            name: {"log1p": True, "mean": float(mean), "std": float(std)}
            for name, mean, std in zip(names, self.mean, self.std, strict=True)
        }


def fit_scale(values: Floats) -> Scale:
    """Mean and standard deviation of log(1 + value), without the unknown; 0 and 1 for columns without values or spread."""
    logged = _logged(values)
    known = ~np.isnan(logged)
    count = np.maximum(known.sum(axis=0), 1)
    mean = np.where(known, logged, 0).sum(axis=0) / count
    std = np.sqrt(np.where(known, (logged - mean) ** 2, 0).sum(axis=0) / count)
    # A spread that is only the rounding of equal numbers would blow up what later differs.
    return Scale(mean, np.where(std > 1e-9, std, 1.0))


def measured_request(jobs: Jobs, since: npt.NDArray[Any]) -> Floats:
    """R × 6: the measured submission features, NaN where unknown."""
    request = jobs.request[:, [REQUEST.index(name) for name in _MEASURED]]
    return np.concatenate([request, np.asarray(since, np.float64)[:, None]], axis=1)


def measured_outcome(jobs: Jobs) -> Floats:
    """R × 4: the measured features of the end, NaN where unknown."""
    return jobs.ended[:, [ENDED.index(name) for name in _LOGGED]]


def submit_features(jobs: Jobs, since: npt.NDArray[Any], scale: Scale) -> npt.NDArray[np.float32]:
    """R × SUBMIT."""
    measured = measured_request(jobs, since)
    unknown = np.isnan(measured[:, [0, 1, 2, 3, 5]])
    flags = np.nan_to_num(jobs.request[:, [REQUEST.index(name) for name in _FLAGS]], nan=0.0)
    local = jobs.submit + jobs.zone_s
    hour = (local % 86400) / 86400 * 2 * np.pi
    # 1970-01-01 was a Thursday; Monday is 0.
    weekday = ((local // 86400 + 3) % 7) / 7 * 2 * np.pi
    clock = np.stack([np.sin(hour), np.cos(hour), np.sin(weekday), np.cos(weekday)], axis=1)
    return np.concatenate([scale.apply(measured), unknown, flags, clock], axis=1).astype(np.float32)


def outcome_features(jobs: Jobs, scale: Scale) -> npt.NDArray[np.float32]:
    """R × OUTCOME."""
    completed, failed, cancelled = (flags[jobs.state] for flags in (_COMPLETED_STATE, _FAILED_STATE, _CANCELLED_STATE))
    code = np.nan_to_num(jobs.ended[:, ENDED.index("exit_code")], nan=0.0)
    states = np.stack([completed, failed, cancelled, ~(completed | failed | cancelled), code != 0], axis=1)
    return np.concatenate([states, scale.apply(measured_outcome(jobs))], axis=1).astype(np.float32)


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """Numbers of the names of each category: 1 for the most frequent one of train, 0 for unknown and rare ones."""

    numbers: tuple[dict[str, int], ...]

    def sizes(self) -> list[int]:
        """How many numbers each category has, 0 among them."""
        return [len(numbers) + 1 for numbers in self.numbers]

    def apply(self, jobs: Jobs) -> Ints:
        """R × CATEGORIES: the numbers of the jobs' names."""
        ids = np.empty(jobs.names.shape, np.int64)
        for column, (numbers, names) in enumerate(zip(self.numbers, jobs.vocabulary, strict=True)):
            table = np.array([numbers.get(name, 0) for name in names.number], np.int64)
            ids[:, column] = table[jobs.names[:, column]]
        return ids

    def to_json(self, salt: bytes | None) -> list[dict[str, Any]]:
        """The manifest's `categories`: never a name; with a salt, the keyed hash of each, in the order of the numbers."""
        entries: list[dict[str, Any]] = []
        for category, numbers, size in zip(CATEGORIES, self.numbers, self.sizes(), strict=True):
            entry: dict[str, Any] = {"name": category, "size": size}
            if salt is not None:
                entry["hashes"] = [keyed_hash(salt, category, name) for name in numbers]
            entries.append(entry)
        return entries


def fit_vocabulary(train: Jobs, max_size: int, min_count: int) -> Vocabulary:
    """The most frequent names of the train jobs, at most `max_size` a category, each at least `min_count` times.

    Equally frequent names are in the order of their first job.
    """
    vocabulary = []
    for column, names in enumerate(train.vocabulary):
        used = train.names[:, column]
        counts = np.bincount(used, minlength=len(names.number))
        counts[0] = 0
        first = np.full(len(counts), len(used))
        np.minimum.at(first, used, np.arange(len(used)))
        ranked = np.lexsort((first, -counts))
        chosen = ranked[counts[ranked] >= max(min_count, 1)][:max_size].tolist()
        by_number = list(names.number)
        vocabulary.append({by_number[code]: number for number, code in enumerate(chosen, start=1)})
    return Vocabulary(tuple(vocabulary))


def read_salt(name: str | None) -> bytes | None:
    """The secret in a file, without blanks at its ends; None without a file.

    Raises:
        UsageError: the file cannot be read, or is too short to keep anybody from trying all secrets.
    """
    if name is None:
        return None
    try:
        salt = Path(name).expanduser().read_bytes().strip()
    except OSError as error:
        raise UsageError(f"salt_file {name}: not readable: {error.strerror}") from None
    if len(salt) < _MIN_SALT_BYTES:
        raise UsageError(
            f"salt_file {name}: holds {len(salt)} bytes; {_MIN_SALT_BYTES} or more are needed, such as of "
            "`head -c 32 /dev/urandom | base64`"
        )
    return salt


def keyed_hash(salt: bytes, category: str, name: str) -> str:
    """What stands for a name: HMAC-SHA256 of category and name, the first 16 hexadecimal digits."""
    text = f"{category}:{name}".encode("utf-8", "surrogateescape")
    return hmac.new(salt, text, hashlib.sha256).hexdigest()[:16]


def _logged(values: Floats) -> Floats:
    # A clock that was set back gives negative times.
    return np.log1p(np.maximum(values, 0))
