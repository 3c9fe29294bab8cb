"""What a check found: lines of ok, warn and fail, and the figures behind them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

Level = Literal["ok", "warn", "fail"]


@dataclass(frozen=True)
class Finding:
    """One line of a report; `mend` says what to do about it."""

    level: Level
    what: str
    mend: str = ""


@dataclass
class Report:
    """All findings of a data set, and figures for scripts."""

    findings: list[Finding] = field(default_factory=list)
    figures: dict[str, Any] = field(default_factory=dict)

    def add(self, level: Level, what: str, mend: str = "") -> None:
        """One more finding."""
        self.findings.append(Finding(level, what, mend))

    @property
    def failed(self) -> bool:
        """Whether anything is wrong."""
        return any(finding.level == "fail" for finding in self.findings)

    def to_json(self) -> dict[str, Any]:
        """For scripts."""
        lines = [{"level": f.level, "what": f.what, "mend": f.mend} for f in self.findings]
        return {"ok": not self.failed, "findings": lines, **self.figures}
