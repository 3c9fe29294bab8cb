"""The one rich console on stderr: progress and warnings go there, results to stdout."""

from __future__ import annotations

import functools

from rich.console import Console


@functools.cache
def err() -> Console:
    """Console on stderr; its `is_terminal` says whether anybody watches."""
    return Console(stderr=True, highlight=False)
