from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import rasterio
from rasterio.windows import Window

from tests.generators import UTM, image_affine
from tests.predict.conftest import Case

ROOT = Path(__file__).parents[2]
MEASURE = (
    "import resource, sys; from pathlib import Path; from hpcdl.predict.__main__ import main; "
    "code = main(Path(sys.argv[1])); print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024); sys.exit(code)"
)


def peak_mb(case: Case, height: int) -> int:
    scene = case.folder / f"tall{height}.tif"
    with rasterio.open(
        scene, "w", driver="GTiff", height=height, width=4000, count=2, dtype="uint16", crs=UTM, transform=image_affine(),
        tiled=True, blockxsize=256, blockysize=256,
    ) as dataset:  # fmt: skip
        for row in range(0, height, 500):
            dataset.write(np.full((2, 500, 4000), 200, np.uint16), window=Window(0, row, 4000, 500))
    request = case.request(f"tall{height}/map.tif", images=[str(scene)], overlap=0.25)
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(request)], capture_output=True, text=True, check=True, timeout=280,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "GDAL_CACHEMAX": "32"},
    )  # fmt: skip
    return int(done.stdout.splitlines()[-1])


@pytest.mark.slow
def test_memory_does_not_grow_with_the_scene(make_case: Callable[..., Case]) -> None:
    """The taller scene alone would be 192 MB more as float probabilities; both are large enough for a picture of full size."""
    case = make_case("constant")
    assert peak_mb(case, 8000) < peak_mb(case, 4000) + 60
