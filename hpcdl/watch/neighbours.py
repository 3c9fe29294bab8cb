"""Who has fallen silent, and who holds up the others: judged from the beats alone, by this process's own clock."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from hpcdl.pulse import WAITING

Beat = Mapping[str, Any]


class Silence:
    """How long each rank has not beaten.

    A look that came late (this process was stopped, or the file system hung) counts no more than one that was in time.
    """

    def __init__(self, longest_gap_s: float) -> None:
        self.longest_gap_s = longest_gap_s
        self.beats: dict[int, Beat] = {}
        self.seconds: dict[int, float] = {}
        self._looked: float | None = None

    def look(self, beats: Mapping[int, Beat | None], now: float) -> None:
        """Take note of the beats as they are at `now` (seconds of a monotonic clock); None is one that could not be read."""
        gap = 0.0 if self._looked is None else min(now - self._looked, self.longest_gap_s)
        self._looked = now
        for rank, beat in beats.items():
            if beat is not None and (rank not in self.beats or beat["count"] != self.beats[rank]["count"]):
                self.beats[rank], self.seconds[rank] = beat, 0.0
            elif rank in self.beats:
                self.seconds[rank] += gap

    def lost(self, limit_s: float) -> list[int]:
        """Ranks that have beaten once, have not said that they end, and have been silent for longer than that."""
        return [
            rank
            for rank, seconds in sorted(self.seconds.items())
            if seconds > limit_s and self.beats[rank]["state"] != "ended"
        ]


class Progress:
    """For how long the training as a whole has got nothing done; late looks count as in `Silence`."""

    def __init__(self, longest_gap_s: float) -> None:
        self.longest_gap_s = longest_gap_s
        self._most, self._seconds = -1, 0.0
        self._looked: float | None = None

    def look(self, beats: Iterable[Beat], now: float) -> float:
        """Seconds since anybody got anything done."""
        gap = 0.0 if self._looked is None else min(now - self._looked, self.longest_gap_s)
        self._looked = now
        most = max((beat["progress"] for beat in beats), default=-1)
        self._seconds = 0.0 if most > self._most else self._seconds + gap
        self._most = max(most, self._most)
        return self._seconds


def holding_up(beats: Mapping[int, Beat], num_ranks: int) -> list[int]:
    """Ranks that the others wait for: those that never came to life, else those that do not wait themselves."""
    absent = [rank for rank in range(num_ranks) if rank not in beats]
    return absent or [rank for rank, beat in sorted(beats.items()) if beat["phase"] != WAITING]
