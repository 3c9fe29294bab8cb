"""Which checkpoint a map is drawn with."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from hpcdl.predict.network import choose_checkpoint
from hpcdl.rundir import RunDir
from hpcdl.train import checkpoint
from tests.predict.conftest import Case, write_checkpoint
from tests.predict.test_ranks import ROOT, launch


def flip_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.fixture
def case(make_case: Callable[..., Case]) -> Case:
    """Checkpoints of steps 10, 20 and 30; that of step 20 is the best."""
    made = make_case("conv")
    for step in (20, 30):
        write_checkpoint(made.run, step)
    checkpoint.point(made.run / "checkpoints", checkpoint.BEST, 20)
    return made


@pytest.mark.parametrize(
    ("wanted", "step"), [(None, 30), ("last", 30), ("best", 20), ("10", 10), (20, 20), ("step-00000010", 10)]
)
def test_the_checkpoint_that_is_wanted_draws_the_map(case: Case, wanted: str | int | None, step: int) -> None:
    settings = {} if wanted is None else {"checkpoint": wanted}
    code, out, err = case.predict(window_px=64, json_output=True, **settings)
    assert (code, err) == (0, "")
    assert json.loads(out)["checkpoint"] == f"step-{step:08d}"


def test_another_checkpoint_is_another_map(case: Case) -> None:
    for wanted in ("last", "best"):
        assert case.predict(out=f"{wanted}.tif", window_px=64, checkpoint=wanted)[0] == 0
    assert (case.map("last.tif") != case.map("best.tif")).any()


def test_without_LAST_the_newest_serves(case: Case) -> None:
    (case.run / "checkpoints/LAST").unlink()
    assert choose_checkpoint(RunDir(case.run), "last").name == "step-00000030"


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ("40", "tiny: has no checkpoint of step 40; it has those of steps 10, 20, 30"),
        ("Best", "checkpoint 'Best' is not allowed; expected last, best or the number of a step"),
        ("-1", "checkpoint '-1' is not allowed; expected last, best or the number of a step"),
        ("1.5", "checkpoint '1.5' is not allowed; expected last, best or the number of a step"),
        ("²", "checkpoint '²' is not allowed; expected last, best or the number of a step"),
    ],
)
def test_no_such_checkpoint(case: Case, wanted: str, message: str) -> None:
    assert case.predict(checkpoint=wanted) == (2, "", f"hpcdl: {message}\n")


def test_no_best_checkpoint(case: Case) -> None:
    (case.run / "checkpoints/BEST").unlink()
    code, out, err = case.predict(checkpoint="best")
    assert (code, out) == (2, "")
    assert err == "hpcdl: tiny: has no best checkpoint, as none was validated; leave --checkpoint out\n"


def test_a_damaged_newest_is_told_and_left_where_it_is(case: Case) -> None:
    newest = case.run / "checkpoints/step-00000030"
    flip_byte(newest / "state.pt")
    code, out, err = case.predict(window_px=64, json_output=True)
    assert code == 0
    assert json.loads(out)["checkpoint"] == "step-00000020"
    assert err.startswith("hpcdl: warning: damaged checkpoint, falling back to an older one: ")
    assert "state.pt is not what was written" in err
    assert err.count("\n") == 1
    assert newest.is_dir()


@pytest.mark.parametrize("wanted", ["best", "20"])
def test_a_damaged_one_that_was_named_is_refused(case: Case, wanted: str) -> None:
    flip_byte(case.run / "checkpoints/step-00000020/ranks.pt")
    code, out, err = case.predict(checkpoint=wanted)
    assert (code, out) == (1, "")
    assert "step-00000020: ranks.pt is not what was written" in err
    assert err.count("\n") == 1


def test_all_damaged(case: Case) -> None:
    for found in checkpoint.checkpoints(case.run / "checkpoints"):
        (found / "digests.json").unlink()
    code, out, err = case.predict()
    assert (code, out) == (1, "")
    assert err.count("hpcdl: warning: damaged checkpoint") == 3
    assert err.endswith("hpcdl: tiny: all its checkpoints are damaged; submit it again\n")


@pytest.mark.slow
def test_the_command_line_takes_it(case: Case) -> None:
    start = [sys.executable, "-m", "hpcdl", "predict", case.run, "--images", case.scene, "--out", "map.tif", "--json"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done, refused = (
        subprocess.run(
            [*start, "--checkpoint", wanted], env=environment, cwd=case.folder, capture_output=True, text=True,
            timeout=120, check=False,
        )
        for wanted in ("best", "40")
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["checkpoint"] == "step-00000020"
    assert refused.returncode == 2
    assert refused.stderr == "hpcdl: tiny: has no checkpoint of step 40; it has those of steps 10, 20, 30\n"


@pytest.mark.slow
def test_rank_0_chooses_and_verifies_for_all(case: Case) -> None:
    flip_byte(case.run / "checkpoints/step-00000030/state.pt")
    maps = {}
    for ranks in (1, 2):
        done = launch(case, ranks, case.request(f"out{ranks}/map.tif", window_px=64))
        assert done.returncode == 0, done.stderr
        assert done.stderr.count("damaged checkpoint") == 1
        maps[ranks] = case.map(f"out{ranks}/map.tif")
    assert (maps[1] == maps[2]).all()
