"""Architectures, configs/architectures/*.yaml: the job file that each names, and its settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpcdl.catalog import find_config, find_job
from hpcdl.config import Document, flatten, load_yaml
from hpcdl.errors import UsageError
from hpcdl.settings import Setting, read_settings, resolve

TRAIN_SETTINGS_FILE = Path(__file__).parent / "train" / "settings.py"


@dataclass(frozen=True)
class Architecture:
    """configs/architectures/<name>.yaml: the job file it names (default: its own stem) and its default settings."""

    name: str
    document: Document
    job_file: Path

    def known_settings(self) -> dict[str, Setting]:
        """The job's own settings, then those of the training loop.

        Raises:
            UsageError: the job file defines a setting that the loop has already.
        """
        own, shared = read_settings(self.job_file), read_settings(TRAIN_SETTINGS_FILE, "TrainSettings")
        for name in own:
            if name in shared:
                raise UsageError(f"{self.job_file}: the setting {name!r} belongs to the training loop; rename it")
        return own | shared

    def resolve_settings(self, layers: list[tuple[str, Mapping[str, Any]]]) -> dict[str, Any]:
        """Values of all settings: defaults, then this file's, then the layers in turn."""
        settings = flatten(self.document.section("settings"))
        # One layer a setting, so that a wrong one is named with its own line.
        mine = [(self.document.where(f"settings.{name}"), {name: value}) for name, value in settings.items()]
        return resolve(self.known_settings(), [*mine, *layers], accepted_by=f"jobs/{self.job_file.name}")


def load_architecture(name: str) -> Architecture:
    """The architecture of that name, or of that .yaml file.

    Raises:
        UsageError: no such architecture, an unknown key, or no such job file.
    """
    document = load_yaml(find_config("architectures", name))
    document.only({"job", "description", "settings"})
    job = str(document.values.get("job", document.path.stem))
    return Architecture(document.path.stem, document, find_job(job, wanted_by=document.path))
