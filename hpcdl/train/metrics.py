"""Where a training's numbers go: metrics.jsonl, TensorBoard, and a line in the log. Rank 0 writes; the others' writer is silent."""

from __future__ import annotations

import math
from typing import Any

from hpcdl.rundir import RunDir, append_line


class MetricsWriter:
    """Writes the lines of one attempt."""

    def __init__(self, run: RunDir, active: bool) -> None:
        self.run, self.active = run, active
        self.board: Any = None
        if active:
            from torch.utils.tensorboard import SummaryWriter

            self.board = SummaryWriter(str(run.tensorboard))

    def write(self, split: str, step: int, values: dict[str, Any]) -> None:
        """One line of metrics.jsonl; numbers among the values go to TensorBoard as `split/name`."""
        if not self.active:
            return
        rounded = {name: _plain(value) for name, value in values.items()}
        append_line(self.run.metrics_file, {"split": split, "step": step, **rounded})
        numbers = {name: value for name, value in values.items() if isinstance(value, int | float)}
        for name, value in numbers.items():
            self.board.add_scalar(f"{split}/{name}", value, step)
        shown = {name: value for name, value in numbers.items() if name not in ("num_steps", "time")}
        print(f"{split} step {step}  " + "  ".join(f"{name} {value:.4g}" for name, value in shown.items()), flush=True)

    def close(self) -> None:
        """Write out what TensorBoard still holds."""
        if self.active:
            self.board.close()


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        # JSON has no NaN; six significant digits would hide that two runs differ in the seventh.
        return float(f"{value:.9g}") if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return value
