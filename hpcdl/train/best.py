"""The best validation so far, and when to stop because there is no better one any more."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from hpcdl.train.guards import AgreedError
from hpcdl.train.settings import BestSettings


@dataclass
class Best:
    """What is known of the validations so far.

    Attributes:
        value: of the metric at the best step; None before the first validation.
        waited: validations since then.
    """

    value: float | None = None
    step: int = 0
    waited: int = 0

    def see(self, metrics: Mapping[str, Any], step: int, settings: BestSettings) -> bool:
        """Take note of a validation; whether it is the best so far. NaN never is.

        A job whose validation gives no loss has no best one, as long as nobody asked for it.

        Raises:
            AgreedError: the job's validation gives no such number.
        """
        value = metrics.get(settings.metric)
        if not isinstance(value, int | float):
            if settings.metric == BestSettings.metric and not settings.patience:
                return False
            numbers = ", ".join(name for name, item in metrics.items() if isinstance(item, int | float))
            raise AgreedError(f"best.metric: the validation gives no number {settings.metric!r}; it gives: {numbers}")
        sign = -1 if settings.mode == "max" else 1
        better = not math.isnan(value) and (self.value is None or sign * value < sign * self.value - settings.min_delta)
        if better:
            self.value, self.step, self.waited = float(value), step, 0
        else:
            self.waited += 1
        return better

    def exhausted(self, settings: BestSettings) -> bool:
        """Whether the training should end for want of progress."""
        return settings.patience > 0 and self.waited >= settings.patience

    def state(self) -> dict[str, Any]:
        """For a checkpoint."""
        return asdict(self)
