from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import rasterio

from hpcdl.predict.ranks import join_ranks
from tests.predict.conftest import Case

ROOT = Path(__file__).parents[2]


def launch(case: Case, ranks: int, request: Path) -> subprocess.CompletedProcess[str]:
    mpirun = shutil.which("mpirun")
    if mpirun is None:
        pytest.skip("needs mpirun")
    environment = {
        **os.environ, "PYTHONPATH": str(ROOT), "OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
        "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    start = [mpirun, "-n", str(ranks), "--oversubscribe", "--bind-to", "none"] if ranks > 1 else []
    return subprocess.run(
        [*start, sys.executable, "-m", "hpcdl.predict", str(request)],
        env=environment, cwd=case.folder, capture_output=True, text=True, timeout=180, check=False,
    )  # fmt: skip


@pytest.mark.slow
def test_any_number_of_ranks_writes_the_same_map(make_case: Callable[..., Case]) -> None:
    case = make_case("conv")
    rasters = {}
    for ranks in (1, 2, 4):  # four are more than there are rows of windows
        request = case.request(
            f"out{ranks}/map.tif", labels=str(case.labels), window_px=64, batch_size=2, probabilities=True
        )
        done = launch(case, ranks, request)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("map.png") == 1
        rasters[ranks] = []
        for name in ("map.tif", "map.probabilities.tif"):
            with rasterio.open(case.folder / f"out{ranks}" / name) as dataset:
                rasters[ranks].append(dataset.read())
        assert not list((case.folder / f"out{ranks}").glob(".*"))
    assert len(np.unique(rasters[1][0])) > 2
    for ranks in (2, 4):
        for one, several in zip(rasters[1], rasters[ranks], strict=True):
            assert np.array_equal(one, several)


@pytest.mark.slow
def test_a_failing_rank_ends_all(make_case: Callable[..., Case]) -> None:
    case = make_case("fails")
    done = launch(case, 2, case.request(window_px=32))
    assert done.returncode == 1
    assert "made to fail" in done.stderr
    assert not (case.folder / "out/map.tif").exists()


@pytest.mark.slow
def test_a_user_error_is_said_once(make_case: Callable[..., Case]) -> None:
    case = make_case()
    shutil.rmtree(case.run / "checkpoints")
    done = launch(case, 2, case.request())
    assert done.returncode == 2
    assert done.stderr.count("has no checkpoint yet") == 1


def test_a_batch_script_is_one_process() -> None:
    ranks = join_ranks({"SLURM_NTASKS": "4", "SLURM_JOB_ID": "1"})
    assert (ranks.rank, ranks.size, ranks.comm) == (0, 1, None)
    assert ranks.from_first("same") == "same"
