"""How ranks hand their rows to rank 0: raw files in the work folder, which all of them see."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from hpcdl.errors import FailedError

Pixels = npt.NDArray[Any]


class PartFile:
    """Rows of one rank, in the order in which they came: for each row all bands, one after the other."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("wb")

    def append(self, rows_BHW: Pixels) -> None:
        """The next rows."""
        np.ascontiguousarray(np.moveaxis(rows_BHW, 0, 1)).tofile(self._file)

    def close(self) -> None:
        """Finish the file."""
        self._file.close()


def read_part(path: Path, num_rows: int, num_bands: int, width: int, dtype: str, rows: int) -> Iterator[Pixels]:
    """The rows of a part file, up to `rows` at a time, as B × H × W.

    Raises:
        FailedError: it is not there, or has not as many rows as it should.
    """
    wanted = num_rows * num_bands * width * np.dtype(dtype).itemsize
    if not path.is_file() or path.stat().st_size != wanted:
        raise FailedError(
            f"{path}: rows of another rank are missing; do all ranks see this folder, and is the disk full?"
        )
    with path.open("rb") as file:
        for row in range(0, num_rows, rows):
            number = min(rows, num_rows - row)
            pixels = np.fromfile(file, dtype, number * num_bands * width)
            yield np.moveaxis(pixels.reshape(number, num_bands, width), 0, 1)
