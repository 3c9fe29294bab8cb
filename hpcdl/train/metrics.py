"""Where a training's numbers go: metrics.jsonl, TensorBoard, and a line in the log. Rank 0 writes; the others' writer is silent."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator
from typing import Any

from hpcdl.errors import FailedError
from hpcdl.rundir import RunDir, append_line, read_lines, write_lines


class MetricsWriter:
    """Writes the lines of one attempt.

    Args:
        goes_on: whether a line that cannot be written (disk full) is only warned of.
    """

    def __init__(self, run: RunDir, active: bool, goes_on: bool = False) -> None:
        self.run, self.active, self.goes_on = run, active, goes_on
        self._board: Any = None
        self._purge_step: int | None = None

    def rewind(self, step: int, validated: bool) -> None:
        """Forget what was written after `step`: an attempt that was killed went further than its last checkpoint.

        Args:
            validated: whether the validation of `step` itself stands.

        Raises:
            FailedError: the file could not be written anew.
        """
        file = self.run.metrics_file
        if not self.active or not file.exists():
            return
        lines = read_lines(file)
        kept = [
            line
            for line in lines
            if line["step"] < step or (line["step"] == step and (validated or line["split"] != "val"))
        ]
        data = file.read_bytes()
        # A line that was cut short goes, too: the next one would be appended to it.
        if len(kept) < data.count(b"\n") or not data.endswith(b"\n"):
            try:
                write_lines(file, kept)
            except OSError as error:
                raise self._failed(error) from None
        self._purge_step = step + 1 if lines else None

    def write(self, split: str, step: int, values: dict[str, Any]) -> None:
        """One line of metrics.jsonl; numbers among the values go to TensorBoard as `split/name`.

        Raises:
            FailedError: it could not be written.
        """
        if not self.active:
            return
        numbers = {name: value for name, value in values.items() if isinstance(value, int | float)}
        with self._tolerated(f"metrics of step {step} could not be written"):
            line = {"split": split, "step": step, **{name: _plain(value) for name, value in values.items()}}
            append_line(self.run.metrics_file, line | {"time": round(time.time(), 3)})
            for name, value in numbers.items():
                self._events().add_scalar(f"{split}/{name}", value, step)
            shown = {name: value for name, value in numbers.items() if name != "num_steps"}
            text = "  ".join(f"{name} {value:.4g}" for name, value in shown.items())
            print(f"{split} step {step}  {text}", flush=True)

    def flush(self) -> None:
        """Write out what TensorBoard still holds, so that a kill does not lose what the checkpoint says was done."""
        if self._board is not None:
            with self._tolerated("TensorBoard's file could not be written"):
                self._board.flush()

    def close(self) -> None:
        """The same, at the end."""
        if self._board is not None:
            with self._tolerated("TensorBoard's file could not be written"):
                self._board.close()

    @contextlib.contextmanager
    def _tolerated(self, what: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if not self.goes_on:
                raise self._failed(error) from None
            print(f"warning: {what}: {error.strerror or error}", flush=True)

    def _failed(self, error: OSError) -> FailedError:
        return FailedError(f"{self.run.metrics_file}: cannot be written: {error.strerror or error}")

    def _events(self) -> Any:
        if self._board is None:
            from torch.utils.tensorboard import SummaryWriter

            self._board = SummaryWriter(str(self.run.tensorboard), purge_step=self._purge_step)
        return self._board


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        # JSON has no NaN; six significant digits would hide that two runs differ in the seventh.
        return float(f"{value:.9g}") if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return value
