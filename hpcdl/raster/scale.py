"""Gain and offset: digital numbers to physical ones, such as reflectance. A pixel becomes gain · number + offset."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import yaml

from hpcdl.catalog import config_names, find_config
from hpcdl.errors import UsageError
from hpcdl.raster.source import Array, RasterSource

FROM_FILE = "file"


@dataclass(frozen=True)
class Scale:
    """One gain and offset a band."""

    gains: tuple[float, ...]
    offsets: tuple[float, ...]

    def apply(self, pixels_CHW: Array) -> npt.NDArray[np.float32]:
        """Scaled pixels; worked out in float64, kept in float32."""
        gains, offsets = (np.reshape(part, (-1, 1, 1)) for part in (self.gains, self.offsets))
        with np.errstate(over="ignore", invalid="ignore"):  # values that mean "no data" may be huge
            scaled: npt.NDArray[np.float32] = (pixels_CHW * gains + offsets).astype(np.float32)
        return scaled


def parse_scale(text: str, sources: Sequence[RasterSource]) -> Scale:
    """The scale of a scene of these files.

    Args:
        text: "file" (what each file declares of itself), a name in configs/scales, or numbers: "0.0001" or "0.0000275,-0.2".

    Raises:
        UsageError: not one of these, or "file" for a file that declares nothing.
    """
    bands = sum(source.num_bands for source in sources)
    if text == FROM_FILE:
        for source in sources:
            if set(source.scales) == {(1.0, 0.0)}:
                raise UsageError(
                    f"{source.path}: declares no gain and offset of its own; give them: --scale GAIN,OFFSET, or a name: "
                    f"{', '.join(config_names('scales'))}"
                )
        pairs = [pair for source in sources for pair in source.scales]
        return Scale(tuple(gain for gain, _ in pairs), tuple(offset for _, offset in pairs))
    gain, offset = _numbers(text)
    return Scale((gain,) * bands, (offset,) * bands)


def _numbers(text: str) -> tuple[float, float]:
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        return _named(text)
    if len(numbers) > 2 or not all(map(math.isfinite, numbers)) or numbers[0] == 0:
        raise UsageError(f"--scale {text}: write GAIN or GAIN,OFFSET, two numbers of which the gain is not 0")
    return numbers[0], numbers[1] if len(numbers) == 2 else 0.0


def _named(name: str) -> tuple[float, float]:
    if name not in config_names("scales"):
        raise UsageError(
            f"--scale {name!r} is not understood; give {FROM_FILE} (what the files declare), GAIN,OFFSET in numbers, or one of: "
            f"{', '.join(config_names('scales'))}"
        )
    path = find_config("scales", name)
    try:
        body = yaml.safe_load(path.read_text(encoding="utf-8"))
        gain, offset = float(body["gain"]), float(body["offset"])
    except (OSError, ValueError, TypeError, KeyError, yaml.YAMLError) as error:
        told = " ".join(str(error).split())
        raise UsageError(f"{path}: not a scale; it needs 'gain' and 'offset', two numbers ({told})") from None
    if gain == 0 or not math.isfinite(gain) or not math.isfinite(offset):
        raise UsageError(f"{path}: gain {gain} and offset {offset}; both are numbers, and the gain is not 0")
    return gain, offset
