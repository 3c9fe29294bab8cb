"""Quality bands: which pixels of a scene to leave out, by the names that the product's makers give (cloud, snow, …).

What the names mean is told by a YAML file; configs/quality has those of Landsat and Sentinel-2:

    name: Landsat Collection 2 QA_PIXEL
    flags: {cloud: {bit: 3}, cloud_confidence_high: {bits: [8, 9], value: 3}}   # or {value: 9} for a whole code
    mask: [cloud]                                                               # what is left out when nothing is named
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import yaml

from hpcdl.catalog import find_config
from hpcdl.errors import UsageError, suggestion

_MOST_BITS = 32


@dataclass(frozen=True)
class Flag:
    """A pixel has the flag when its code, shifted right by `shift` bits and cut to `bits` bits, is `value`."""

    shift: int
    bits: int
    value: int

    def of(self, codes: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
        """Which codes have the flag."""
        return np.asarray((codes.astype(np.int64) >> self.shift) & ((1 << self.bits) - 1) == self.value)


@dataclass(frozen=True)
class QualityRule:
    """Codes to leave out: those that have one of the flags."""

    flags: tuple[Flag, ...]

    def good(self, codes: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
        """Which pixels stay."""
        stays = np.ones(codes.shape, np.bool_)
        for flag in self.flags:
            stays &= ~flag.of(codes)
        return stays


def load_quality_rule(name: str, mask: Sequence[str] = ()) -> QualityRule:
    """The rule of a file in configs/quality (or a YAML file) for the flags named in `mask`, else for the file's own.

    Raises:
        UsageError: no such file, not of the form above, or an unknown flag; says in which file.
    """
    path = find_config("quality", name)
    try:
        body = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UsageError(f"{path}: not readable as YAML: {' '.join(str(error).split())}") from None
    if not isinstance(body, dict) or not isinstance(body.get("flags"), dict):
        raise UsageError(f"{path}: describes no quality band; it needs 'flags', such as {{cloud: {{bit: 3}}}}")
    flags = {str(flag): _flag(path, str(flag), entry) for flag, entry in body["flags"].items()}
    own = body.get("mask") or []
    if not isinstance(own, list):
        raise UsageError(f"{path}: 'mask' is {own!r}; write a list of flags, such as [cloud, cloud_shadow]")
    names = [str(flag) for flag in (mask or own)]
    for flag in names:
        if flag not in flags:
            raise UsageError(f"{path}: has no flag {flag!r}; it has: {', '.join(flags)}.{suggestion(flag, flags)}")
    if not names:
        raise UsageError(f"{path}: names no flags to leave out by default; choose with --mask, of: {', '.join(flags)}")
    return QualityRule(tuple(flags[flag] for flag in names))


def _flag(path: Path, name: str, entry: object) -> Flag:
    whole: Mapping[str, Any] = entry if isinstance(entry, dict) else {}
    bits = [whole["bit"]] if set(whole) == {"bit"} else whole.get("bits", [])
    value = 1 if set(whole) == {"bit"} else whole.get("value")
    fits = isinstance(value, int) and value >= 0 and set(whole) <= {"bit", "bits", "value"}
    if fits and "bits" not in whole and "bit" not in whole:
        return Flag(0, _MOST_BITS, int(whole["value"]))
    if fits and isinstance(bits, list) and bits and all(isinstance(bit, int) and 0 <= bit < _MOST_BITS for bit in bits):
        low, high = min(bits), max(bits)
        if sorted(bits) == list(range(low, high + 1)) and int(whole.get("value", 1)) < 1 << len(bits):
            return Flag(low, len(bits), int(whole.get("value", 1)))
    raise UsageError(
        f"{path}: flag {name!r} is {entry!r}; write {{bit: 3}}, {{bits: [8, 9], value: 3}} or, for a whole code, {{value: 9}}"
    )
