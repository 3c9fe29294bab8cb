from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import yaml

from hpcdl.catalog import bundled_root
from tests.cli.conftest import TINY
from tests.conftest import Hpcdl

BAD_FLAGS = [
    (["unnet"], "unknown architecture 'unnet'.*Did you mean 'unet'"),
    (["unet", "--cluster", "expans"], "unknown cluster 'expans'.*Did you mean 'expanse'"),
    (["unet", "--set", "dept=5"], "unknown setting 'dept'.*Did you mean 'depth'"),
    (["unet", "--set", "depth=deep"], "'depth': 'deep' is not allowed; expected int from 1 to 8"),
    (["unet", "--set", "norm=batched"], "expected one of none, batch, group.*Did you mean 'batch'"),
    (["unet", "--set", "depth"], "expected key=value"),
    (["unet", "--nodes", "2"], "cluster local is this one machine"),
    (["unet", "--cluster", "testcluster", "--nodes", "9"], "has 4 nodes, asked for 9"),
    (["unet", "--cluster", "testcluster", "-t", "soon"], "time 'soon' is not one of"),
    (["unet", "--cluster", "expanse"], "needs --account"),
    (["unet", "--comm", "mpi"], "not one of auto, horovod"),
    (["unet", "--ntasks-per-node", "2", "--comm", "single"], "is for one rank"),
    (["unet", "--name", "a/b"], "has no slash"),
    (["unet", "--name", ".."], "starts with a letter"),
    (["unet", "--name", "100%j"], "no slash, backslash, percent sign"),
    (["unet", "--sbatch", "--array=0-3"], "hpcdl sets this itself, or cannot follow such a job"),
    (["unet", "--sbatch", "-o x"], "hpcdl sets this itself"),
    (["unet", "--sbatch", "--comment='x"], "No closing quotation"),
    (["--data", "x"], "which architecture"),
]


@pytest.mark.parametrize(("flags", "complaint"), BAD_FLAGS)
def test_a_wrong_request_is_one_clear_line_and_code_2(
    hpcdl: Hpcdl, data: Path, flags: list[str], complaint: str
) -> None:
    result = hpcdl("submit", *flags, *([] if "--data" in flags else ["--data", str(data)]))
    assert (result.code, result.out) == (2, "")
    assert result.err.count("\n") == 1
    assert __import__("re").search(complaint, result.err), result.err
    assert not Path("runs").exists()


def test_a_data_set_whose_shard_was_changed_is_refused(hpcdl: Hpcdl, data: Path) -> None:
    path = data / "train-00000.h5"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    result = hpcdl("submit", "unet", "--data", data)
    assert result.code == 1
    assert "train-00000.h5: the shard was changed" in result.err
    assert not Path("runs").exists()


def test_fewer_chips_than_ranks(hpcdl: Hpcdl, data: Path) -> None:
    result = hpcdl("submit", "unet", "--data", data, "--ntasks-per-node", "16", "--set", "batch_size=16")
    assert result.code == 2
    assert "has 8 training samples for 16 ranks" in result.err


def test_a_batch_that_does_not_divide_names_one_that_does(hpcdl: Hpcdl, data: Path) -> None:
    result = hpcdl("submit", "unet", "--data", data, "--ntasks-per-node", "3", "--set", "batch_size=16")
    assert "try --set batch_size=15" in result.err


def test_no_data_set_there(hpcdl: Hpcdl, workdir: Path) -> None:
    assert "the data set does not exist; make it with `hpcdl preprocess`" in hpcdl("submit", "unet", "--data", "no").err
    assert "--data is missing" in hpcdl("submit", "unet").err


def test_no_sbatch_on_path(hpcdl: Hpcdl, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    result = hpcdl("submit", "unet", "--data", data, "--cluster", "testcluster")
    assert result.code == 2
    assert "no sbatch on PATH" in result.err
    assert "--cluster local" in result.err
    assert not Path("runs").exists()


def test_sbatch_refusing_shows_its_message_and_leaves_nothing(
    hpcdl: Hpcdl, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = tmp_path / "bin"
    fake.mkdir()
    (fake / "sbatch").write_text("#!/bin/sh\necho 'sbatch: error: invalid partition' >&2\nexit 1\n")
    (fake / "sbatch").chmod(0o755)
    monkeypatch.setenv("PATH", f"{fake}:{os.environ['PATH']}")
    result = hpcdl("submit", "unet", "--data", data, "--cluster", "testcluster", "--name", "x")
    assert result.code == 1
    assert "sbatch refused (exit code 1): sbatch: error: invalid partition" in result.err
    assert not Path("runs/x").exists()


def test_dry_run_prints_the_script_that_is_submitted_and_writes_nothing(hpcdl: Hpcdl, data: Path) -> None:
    flags = ["submit", "unet", "--data", data, *TINY, "--name", "it's $(one)", "--set", "epochs=1"]
    before = sorted(Path().rglob("*"))
    dry = hpcdl(*flags, "--dry-run")
    assert dry.code == 0
    assert sorted(Path().rglob("*")) == before
    assert hpcdl(*flags, "--wait").code == 0
    assert (Path("runs") / "it's $(one)" / "job.sbatch").read_text() == dry.out


@pytest.mark.slow
def test_a_run_from_submission_to_resume(hpcdl: Hpcdl, data: Path) -> None:
    result = hpcdl(
        "submit", "unet", "--data", data, *TINY, "--name", "ün $(run) 'q'", "--set", "epochs=2", "--json", "--wait"
    )
    assert result.code == 0
    row = json.loads(result.out)
    assert row["state"] == "COMPLETED"
    assert row["progress"]["step"] == 4
    run = Path(row["run_dir"])
    spec = yaml.safe_load((run / "run.yaml").read_text())
    assert spec["settings"]["width"] == 2
    assert (run / "code" / "unet.py").is_file()
    assert (run / "data.json").read_bytes() == (data / "manifest.json").read_bytes()

    taken = hpcdl("submit", "unet", "--data", data, "--name", run.name)
    assert taken.code == 2
    assert "is taken" in taken.err

    (status,) = json.loads(hpcdl("status", run.name, "--json").out)
    assert status["job"]["exit_code"] == 0
    assert run.name in hpcdl("status").out
    assert "done: 4 steps" in hpcdl("logs", row["job"]["job_id"]).out
    assert "done: 4 steps" in hpcdl("logs", run.name, "-f").out

    more = hpcdl("resume", run.name, "--set", "epochs=3", "--ntasks-per-node", "2", "--wait")
    assert more.code == 0, more.err
    (status,) = json.loads(hpcdl("status", run.name, "--json").out)
    assert (status["attempts"], status["progress"]["step"]) == (2, 6)
    assert "resumed from step-00000004" in hpcdl("logs", run.name).out
    assert (run / "run.1.yaml").is_file()
    assert "had ended already" in hpcdl("cancel", run.name).out


@pytest.mark.slow
def test_a_job_that_fails_passes_on_its_code_and_shows_its_log(hpcdl: Hpcdl, data: Path, workdir: Path) -> None:
    jobs = workdir / "jobs"
    jobs.mkdir()
    (workdir / "configs" / "architectures").mkdir(parents=True)
    (workdir / "configs" / "architectures" / "broken.yaml").write_text("description: fails\n")
    (jobs / "broken.py").write_text(
        "NEEDS = ('image',)\nfrom dataclasses import dataclass\n\n"
        "@dataclass(frozen=True)\nclass Settings:\n    size: int = 1\n\n"
        "class Job:\n    def __init__(self, settings, data):\n        raise RuntimeError('deliberately broken')\n"
    )
    result = hpcdl("submit", "broken", "--data", data, "--wait")
    assert result.code == 1
    assert "deliberately broken" in result.err
    assert "ended as FAILED" in result.err


def test_wrong_value_in_a_users_architecture_names_its_line(hpcdl: Hpcdl, data: Path, workdir: Path) -> None:
    folder = workdir / "configs" / "architectures"
    folder.mkdir(parents=True)
    (folder / "mine.yaml").write_text("job: unet\nsettings:\n  width: 8\n  dept: 3\n")
    result = hpcdl("submit", "mine", "--data", data)
    assert "mine.yaml:4: unknown setting 'dept'. jobs/unet.py accepts: width, depth" in result.err
    (folder / "mine.yaml").write_text("a: !!python/object/apply:os.system ['touch pwned']\n")
    result = hpcdl("submit", "mine", "--data", data)
    assert result.code == 2
    assert "mine.yaml:1: not usable YAML" in result.err
    assert not Path("pwned").exists()


def test_precedence(hpcdl: Hpcdl, workdir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def nodes_and_partition(*flags: str) -> tuple[str, str]:
        script = hpcdl("submit", "unet", "--dry-run", *flags).out
        lines = dict(
            line[10:].split("=", 1) for line in script.splitlines() if line.startswith("#SBATCH --") and "=" in line
        )
        return lines["nodes"], lines["partition"]

    user = tmp_path / "config" / "hpcdl"
    user.mkdir(parents=True)
    (user / "config.yaml").write_text("cluster: testcluster\nnodes: 2\n")
    assert nodes_and_partition() == ("2", "normal")
    (workdir / "hpcdl.yaml").write_text(
        "nodes: 3\npartition: preempt\nsettings: {epochs: 8}\narchitectures: {unet: {width: 8}}\n"
    )
    assert nodes_and_partition() == ("3", "preempt")
    monkeypatch.setenv("SBATCH_PARTITION", "normal")
    assert nodes_and_partition() == ("3", "normal")
    monkeypatch.setenv("HPCDL_PARTITION", "preempt")
    monkeypatch.setenv("HPCDL_NODES", "4")
    assert nodes_and_partition() == ("4", "preempt")
    assert nodes_and_partition("--nodes", "1", "-p", "normal") == ("1", "normal")
    (workdir / "hpcdl.yaml").write_text("node: 3\n")
    assert "hpcdl.yaml:1: unknown key 'node'" in hpcdl("submit", "unet", "--dry-run").err


def test_variables_that_slurm_ignores_are_warned_of(
    hpcdl: Hpcdl, workdir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SBATCH_TIME", "1:00:00")
    result = hpcdl("submit", "unet", "--dry-run")
    assert result.code == 0
    assert "SBATCH_TIME is set, but Slurm and hpcdl ignore it; the real name is SBATCH_TIMELIMIT" in result.err


def test_settings_of_the_project_file(hpcdl: Hpcdl, data: Path, workdir: Path) -> None:
    (workdir / "hpcdl.yaml").write_text("settings: {epochs: 7}\narchitectures: {unet: {width: 3}, other: {size: 1}}\n")
    flags = [
        "--data",
        data,
        "--set",
        "depth=1",
        "--set",
        "batch_size=4",
        "--set",
        "max_steps=1",
        "--name",
        "x",
        "--wait",
    ]
    assert hpcdl("submit", "unet", *flags).code == 0
    settings = yaml.safe_load(Path("runs/x/run.yaml").read_text())["settings"]
    assert (settings["epochs"], settings["width"], settings["depth"]) == (7, 3, 1)
    (workdir / "hpcdl.yaml").write_text("architectures: {unet: {widht: 3}}\n")
    assert "hpcdl.yaml:1: unknown setting 'widht'" in hpcdl("submit", "unet", "--dry-run").err


def test_no_launcher_for_several_ranks_here(hpcdl: Hpcdl, data: Path, workdir: Path) -> None:
    clusters = workdir / "configs" / "clusters"
    clusters.mkdir(parents=True)
    (clusters / "bare.yaml").write_text("scheduler: local\nlauncher: no-such-mpirun -n {tasks}\n")
    flags = ["--data", data, "--cluster", "bare", "--set", "batch_size=4", "--ntasks-per-node", "2"]
    result = hpcdl("submit", "unet", *flags)
    assert result.code == 2
    assert "no no-such-mpirun on PATH to start 2 ranks" in result.err
    assert not Path("runs").exists()


def test_a_resumed_run_keeps_what_its_checkpoint_depends_on(hpcdl: Hpcdl, data: Path) -> None:
    assert hpcdl("submit", "unet", "--data", data, *TINY, "--set", "epochs=1", "--name", "x", "--wait").code == 0
    before = Path("runs/x/run.yaml").read_text()
    for change in ("width=4", "batch_size=2", "optimizer.name=sgd", "ema=0.9", "seed=3"):
        result = hpcdl("resume", "x", "--set", change)
        assert result.code == 2
        assert "a resumed run keeps it" in result.err
    assert Path("runs/x/run.yaml").read_text() == before


def test_two_submissions_of_one_run_at_once(hpcdl: Hpcdl, data: Path) -> None:
    assert hpcdl("submit", "unet", "--data", data, *TINY, "--set", "epochs=1", "--name", "x", "--wait").code == 0
    Path("runs/x/.submitting").touch()
    result = hpcdl("resume", "x")
    assert result.code == 2
    assert "is being submitted by another command" in result.err


@pytest.mark.slow
def test_an_architecture_and_a_cluster_given_as_files(hpcdl: Hpcdl, data: Path, workdir: Path) -> None:
    folder = workdir / "my files"
    folder.mkdir()
    (folder / "special.yaml").write_text("job: special.py\n")
    (folder / "special.py").write_text((bundled_root() / "jobs" / "unet.py").read_text())
    (folder / "box.yaml").write_text("scheduler: local\n")
    flags = [*TINY, "--set", "epochs=1", "--set", "norm=none", "--name", "x", "--wait"]
    first = hpcdl("submit", "my files/special.yaml", "--cluster", "my files/box.yaml", "--data", data, *flags)
    assert first.code == 0, first.err
    assert hpcdl("resume", "x", "--set", "epochs=2", "--wait").code == 0


def test_the_folder_of_runs_may_come_from_the_environment(
    hpcdl: Hpcdl, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HPCDL_RUNS", "elsewhere")
    assert hpcdl("submit", "unet", "--data", data, *TINY, "--set", "epochs=1", "--name", "x", "--wait").code == 0
    assert Path("elsewhere/x/run.yaml").is_file()
    assert json.loads(hpcdl("status", "x", "--json").out)[0]["state"] == "COMPLETED"
    assert "done: 2 steps" in hpcdl("logs", "x").out


def test_a_slow_sbatch_does_not_cost_the_run_folder(
    hpcdl: Hpcdl, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = tmp_path / "bin"
    fake.mkdir()
    (fake / "sbatch").write_text("#!/bin/sh\nexec sleep 30\n")
    (fake / "squeue").write_text('#!/bin/sh\n[ -n "$ANSWER" ] && echo "77 $PWD/runs/x"\nexit 0\n')
    for path in fake.iterdir():
        path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{fake}:{os.environ['PATH']}")
    monkeypatch.setattr("hpcdl.batch.slurm.CALL_TIMEOUT_S", 1)
    flags = ["submit", "unet", "--data", data, "--cluster", "testcluster"]
    lost = hpcdl(*flags, "--name", "lost")
    assert lost.code == 124
    assert "runs/lost is kept: look at `squeue --me`" in lost.err
    assert Path("runs/lost/run.yaml").is_file()
    monkeypatch.setenv("ANSWER", "1")
    found = hpcdl(*flags, "--name", "x", "--json")
    assert (found.code, json.loads(found.out)["job_id"]) == (0, "77")
