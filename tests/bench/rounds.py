"""Rounds: everything that is compared runs once a round, in turn, so that a slow moment of the machine hits all alike."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping

ROUNDS = 5


def measure(runs: Mapping[str, Callable[[], float]], rounds: int = ROUNDS) -> dict[str, list[float]]:
    """Each run's figure in each round."""
    figures: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            figures[name].append(run())
    return figures


def ratio(figures: Mapping[str, list[float]], name: str, base: str) -> float:
    """Median over the rounds of one figure divided by another of the same round."""
    return statistics.median(a / b for a, b in zip(figures[name], figures[base], strict=True))


def show(title: str, unit: str, figures: Mapping[str, list[float]], base: str, goals: Mapping[str, str]) -> None:
    """A table: median, smallest and largest, ratio to the base."""
    print(f"\n## {title}\n\n| what | median {unit} | min | max | ratio to {base} | goal |\n|---|---|---|---|---|---|")
    for name, values in figures.items():
        cells = [f"{statistics.median(values):.4g}", f"{min(values):.4g}", f"{max(values):.4g}"]
        print(
            f"| {name} | {' | '.join(cells)} | {ratio(figures, name, base):.3f} | {goals.get(name, '')} |", flush=True
        )
