from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hpcdl.batch.script import render
from hpcdl.cluster import load_cluster
from hpcdl.resources import Resources
from hpcdl.spec import JobSpec

GOLDEN = Path(__file__).parent / "golden"
REQUEST = {"comm": "horovod", "cwd": "/home/student/my data"}

CASES = {
    "local-train": ("train", "local", Resources(ntasks_per_node=2, time="1:00:00")),
    "expanse-train": (
        "train",
        "expanse",
        Resources(
            nodes=2, ntasks_per_node=4, cpus_per_task=10, gpus_per_node=4, partition="gpu", account="abc123", mem="64G"
        ),
    ),
    "frontera-train": (
        "train",
        "frontera",
        Resources(
            nodes=2,
            ntasks_per_node=4,
            cpus_per_task=4,
            gpus_per_node=4,
            partition="rtx",
            reservation="ML_Institute_day4",
        ),
    ),
    "testcluster-preprocess": ("preprocess", "testcluster", Resources(nodes=4, ntasks_per_node=2, partition="normal")),
    "testcluster-predict": ("predict", "testcluster", Resources(nodes=2, partition="normal", requeue=False)),
}


def make(case: str, name: str = "zion-unet", request: dict[str, str] | None = None, **changes: Any) -> str:
    kind, cluster, resources = CASES[case]
    spec = JobSpec(
        kind, name, Path("/scratch/it's mine/runs") / name, load_cluster(cluster), replace(resources, **changes),
        request or REQUEST,
        python="/opt/hpcdl/.venv/bin/python",
    )  # fmt: skip
    return render(spec)


@pytest.mark.parametrize("case", CASES)
def test_whole_script(workdir: Path, case: str, request: pytest.FixtureRequest) -> None:
    """Compared whole; after a wanted change, delete the golden file and run again to write it anew."""
    path = GOLDEN / f"{case}.sbatch"
    text = make(case)
    if not path.exists():
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        pytest.fail(f"{path.name} was missing and is now written: read it, then run again")
    assert text == path.read_text()


@pytest.mark.parametrize("case", CASES)
def test_bash_and_shellcheck_accept_it(workdir: Path, case: str) -> None:
    text = make(case, request={**REQUEST, "comm": "torch"})
    subprocess.run(["bash", "-n"], input=text, text=True, check=True)
    # The wheel puts its program beside the interpreter; without it, Debian's own is on PATH.
    shellcheck = shutil.which("shellcheck", path=str(Path(sys.executable).parent)) or "shellcheck"
    done = subprocess.run(
        [shellcheck, "--shell=bash", "--severity=style", "-"], input=text, text=True, capture_output=True, check=False
    )
    assert done.stdout == ""


def test_names_never_reach_the_shell_unquoted(workdir: Path) -> None:
    name = 'q\'1 "2" $(touch pwned) `x` ünï'
    text = make("local-train", name=name)
    only_assignments = "\n".join(line for line in text.splitlines() if line.startswith(("run_dir=", "set ")))
    done = subprocess.run(
        ["bash", "-c", only_assignments + '\nprintf %s "$run_dir"'], text=True, capture_output=True, check=True
    )
    assert done.stdout == f"/scratch/it's mine/runs/{name}"
    assert not (workdir / "pwned").exists()


def test_a_line_break_cannot_smuggle_in_a_directive(workdir: Path) -> None:
    with pytest.raises(ValueError, match="line break"):
        make("local-train", name="a\n#SBATCH --uid=0")


def test_the_walltimes_signal_goes_to_the_process_that_hands_it_on(workdir: Path) -> None:
    for case, wanted in (("expanse-train", "B:USR1@45"), ("testcluster-preprocess", "USR1@45")):
        assert f"#SBATCH --signal={wanted}\n" in make(case, signal="USR1@45")
    assert "#SBATCH --signal=B:USR1@30\n" in make("expanse-train", time="1:00")
    assert "--signal" not in make("testcluster-preprocess")


@pytest.mark.parametrize(("requeue", "line"), [(True, "--requeue"), (False, "--no-requeue")])
def test_requeue_is_said_either_way(workdir: Path, requeue: bool, line: str) -> None:
    assert f"#SBATCH {line}\n" in make("expanse-train", requeue=requeue)
