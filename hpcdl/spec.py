"""JobSpec: one job, fully resolved. Made once on the login node, written to run.yaml, read by the job; never changed."""

from __future__ import annotations

import datetime
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from hpcdl import __version__
from hpcdl.cluster import Cluster
from hpcdl.resources import Resources


@dataclass(frozen=True)
class JobSpec:
    """One job.

    Attributes:
        kind: "train", "rehearse", "preprocess" or "predict": the template's and the module's name.
        request: what the module of that kind reads, plain values only.
        sbatch: further sbatch arguments, passed on as they are.
    """

    kind: str
    name: str
    run_dir: Path
    cluster: Cluster
    resources: Resources
    request: Mapping[str, Any] = field(default_factory=dict)
    sbatch: tuple[str, ...] = ()
    python: str = sys.executable

    def document(self) -> dict[str, Any]:
        """The mapping that run.yaml holds."""
        return {
            "hpcdl": __version__,
            "kind": self.kind,
            "name": self.name,
            "created": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
            "cluster": self.cluster.name,
            "cluster_file": str(self.cluster.document.path),
            "scheduler": self.cluster.scheduler,
            "resources": asdict(self.resources),
            "sbatch": list(self.sbatch),
            "python": self.python,
            **self.request,
        }
