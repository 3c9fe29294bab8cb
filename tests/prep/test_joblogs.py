from __future__ import annotations

import dataclasses
import gzip
import hashlib
import hmac
import json
import os
import pickle
import sys
from datetime import UTC, datetime
from pathlib import Path

import h5py
import numpy as np
import pytest

from hpcdl.errors import FailedError, UsageError
from hpcdl.prep import joblogs
from hpcdl.prep.joblog.features import OUTCOME, SUBMIT
from hpcdl.prep.joblog.record import CATEGORIES, ENDED
from hpcdl.prep.joblogs import Settings
from hpcdl.shards.writer import write_shard_file

ROOT = Path(__file__).resolve().parents[2]
REAL = Path(os.environ.get("HPCDL_SHARED_DATA", ROOT.parent / "shared" / "data")) / "jobs"
HEADER = "JobID|Cluster|User|Group|Account|Partition|QOS|Submit|Start|End|State|ExitCode|ReqCPUS|ReqMem|Timelimit|Elapsed|JobName"
START = 1_714_521_600  # 2024-05-01, a Wednesday


def clock(seconds):
    return "Unknown" if seconds is None else f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}"


@dataclasses.dataclass
class Run:
    number: int
    user: str
    submit: int
    start: int | None
    end: int | None
    state: str = "COMPLETED"
    code: int = 0
    cpus: int = 4
    name: str = "train"

    def line(self):
        elapsed = 0 if self.end is None or self.start is None else self.end - self.start
        took = f"{elapsed // 86400}-{elapsed // 3600 % 24:02}:{elapsed // 60 % 60:02}:{elapsed % 60:02}"
        return (
            f"{self.number}|cl|{self.user}|grp-{self.user}|acc-{self.user}|part|high|{clock(self.submit)}|"
            f"{clock(self.start)}|{clock(self.end)}|{self.state}|{self.code}:0|{self.cpus}|2Gc|01:00:00|{took}|{self.name}"
        )


def make_runs(count=300, seed=0):
    rng = np.random.default_rng(seed)
    runs = []
    for number in range(count):
        submit = START + number * 600 + int(rng.integers(0, 500))
        start = submit + int(rng.integers(0, 4000))
        state = rng.choice(
            ["COMPLETED", "FAILED", "TIMEOUT", "CANCELLED by 17", "PREEMPTED"], p=[0.6, 0.2, 0.05, 0.1, 0.05]
        )
        name = f"job name {rng.integers(0, 5)}"
        user = f"person{rng.integers(0, 4)}"
        runs.append(Run(number, user, submit, start, start + int(rng.integers(1, 9000)), str(state), name=name))
    return runs


def write_log(path: Path, runs) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join([HEADER, *(run.line() for run in runs)]) + "\n", encoding="utf-8")
    return path


def settings_for(path: Path, **changes) -> Settings:
    return dataclasses.replace(Settings(logs=(str(path),), history=5), **changes)


def shards_of(plan, folder: Path):
    attributes, arrays = {}, {}
    for task in plan.shards:
        content = joblogs.make_shard(pickle.loads(pickle.dumps(plan)), task)  # noqa: S301
        path = folder / f"{task.name}.h5"
        write_shard_file(path, content.fields, content.attributes)
        with h5py.File(path) as file:
            attributes[task.name] = dict(file.attrs)
            arrays[task.name] = {name: file[name][:] for name in file}
    return attributes, arrays


def joined(arrays, field: str, split: str = ""):
    return np.concatenate([shard[field] for name, shard in arrays.items() if name.startswith(split)])


def test_samples_are_the_finished_jobs_in_order_of_submission(tmp_path):
    runs = make_runs()
    shuffled = [runs[place] for place in np.random.default_rng(1).permutation(len(runs))]
    plan = joblogs.plan(settings_for(write_log(tmp_path / "x y.txt", shuffled)))
    attributes, arrays = shards_of(plan, tmp_path)
    samples = [run for run in runs if run.state in ("COMPLETED", "FAILED", "TIMEOUT")]
    np.testing.assert_array_equal(joined(arrays, "time"), [run.submit for run in samples])
    np.testing.assert_array_equal(joined(arrays, "label"), [run.state != "COMPLETED" for run in samples])
    assert joined(arrays, "label").dtype == np.int64
    times = [joined(arrays, "time", split) for split in ("train", "val", "test")]
    assert times[0].max() < times[1].min() <= times[1].max() < times[2].min()
    end = joined(arrays, "end")
    np.testing.assert_array_equal(end[:, ENDED.index("elapsed_s")], [run.end - run.start for run in samples])
    np.testing.assert_array_equal(end[:, ENDED.index("wait_s")], [run.start - run.submit for run in samples])
    assert np.isnan(end[:, ENDED.index("max_rss_mb")]).all()
    for shard in arrays.values():
        described = {name: (field["dtype"], field["shape"]) for name, field in plan.fields.items()}
        assert {name: (str(array.dtype), list(array.shape[1:])) for name, array in shard.items()} == described
    entries = joblogs.manifest_entries(plan, attributes)
    json.dumps(entries)
    assert [entry["name"] for entry in entries["classes"]] == ["completed", "failed"]
    assert entries["statistics"]["label"]["histogram"] == np.bincount(joined(arrays, "label", "train")).tolist()
    assert sum(map(sum, entries["class_counts"].values())) == len(samples)
    dropped = sum(sum(counts.values()) for counts in plan.counts.values())
    assert dropped == len(runs) - len(samples)
    text = "\n".join(joblogs.summary(plan, entries))
    assert "300 jobs: COMPLETED" in text
    assert "failure rate" in text


def test_histories_hold_the_users_jobs_and_only_ends_that_were_known(tmp_path):
    runs = make_runs()
    plan = joblogs.plan(settings_for(write_log(tmp_path / "x.txt", runs)))
    _, arrays = shards_of(plan, tmp_path)
    mask, outcome, length = (joined(arrays, name) for name in ("mask", "outcome", "length"))
    submit, category = joined(arrays, "submit"), joined(arrays, "category")
    samples = [run for run in runs if run.state in ("COMPLETED", "FAILED", "TIMEOUT")]
    assert 0 < mask.mean() < 1
    for row, run in enumerate(samples):
        before = [other for other in runs if other.user == run.user and other.number < run.number][-4:]
        assert length[row] == len(before) + 1
        assert not submit[row, : 4 - len(before)].any()
        assert not category[row, : 4 - len(before)].any()
        known = [0] * (4 - len(before)) + [int(other.end <= run.submit) for other in before]
        np.testing.assert_array_equal(mask[row], known)
        assert not outcome[row][mask[row] == 0].any()
        for place, other in enumerate(before, start=4 - len(before)):
            if mask[row, place]:
                states = dict(zip(OUTCOME, outcome[row, place], strict=True))
                assert states["completed"] == (other.state == "COMPLETED")
                assert states["failed"] == (other.state in ("FAILED", "TIMEOUT"))
                assert states["cancelled"] == other.state.startswith("CANCELLED")
                assert states["other"] == (other.state == "PREEMPTED")


def test_nothing_of_a_jobs_own_end_reaches_its_inputs(tmp_path):
    runs = make_runs()
    first = shards_of(joblogs.plan(settings_for(write_log(tmp_path / "a.txt", runs))), tmp_path)[1]
    # All that the jobs of the test split will do is another thing; the splits stay where they are.
    others = [
        dataclasses.replace(run, end=run.end + 86400, start=run.start + 50, code=9, state="FAILED")
        if number >= 290 and run.state in ("COMPLETED", "FAILED", "TIMEOUT") else run
        for number, run in enumerate(runs)
    ]  # fmt: skip
    second = shards_of(joblogs.plan(settings_for(write_log(tmp_path / "b.txt", others))), tmp_path)[1]
    assert (joined(first, "label") != joined(second, "label")).any()
    for field in ("submit", "category", "length", "time"):
        np.testing.assert_array_equal(joined(first, field), joined(second, field))
    early = joined(first, "time") <= runs[290].submit
    for field in ("outcome", "mask"):
        np.testing.assert_array_equal(joined(first, field)[early], joined(second, field)[early])


def test_scales_and_vocabularies_know_train_only(tmp_path):
    runs = make_runs()
    plan = joblogs.plan(settings_for(write_log(tmp_path / "a.txt", runs)))
    entries = joblogs.manifest_entries(plan, shards_of(plan, tmp_path)[0])
    first_val = plan.starts["val"]
    late = [
        dataclasses.replace(run, cpus=10_000, name="never seen", user="newcomer") if run.submit >= first_val else run
        for run in runs
    ]
    other = joblogs.plan(settings_for(write_log(tmp_path / "b.txt", late)))
    attributes, arrays = shards_of(other, tmp_path)
    changed = joblogs.manifest_entries(other, attributes)
    assert changed["scaling"] == entries["scaling"]
    assert changed["categories"] == entries["categories"]
    for category in ("user", "jobname"):
        assert not joined(arrays, "category", "test")[:, -1, CATEGORIES.index(category)].any()
    train = [run for run in runs if run.submit < first_val]
    cpus = entries["scaling"]["submit"]["cpus"]
    np.testing.assert_allclose(cpus["mean"], np.log1p([run.cpus for run in train]).mean())
    # The most frequent name of train has the number 1.
    names = [run.name for run in train]
    ids = joined(arrays, "category", "train")[:, -1, CATEGORIES.index("jobname")]
    rows = [run.name for run in train if run.state in ("COMPLETED", "FAILED", "TIMEOUT")]
    assert {name for name, number in zip(rows, ids, strict=True) if number == 1} == {max(set(names), key=names.count)}


def test_no_name_is_in_shards_or_manifest(tmp_path):
    runs = [
        dataclasses.replace(run, user=f"müller{run.number % 3}", name=f"secret-{run.number % 5}") for run in make_runs()
    ]
    path = write_log(tmp_path / "log.txt", runs)
    salt = tmp_path / "salt"
    salt.write_text("correct horse battery staple\n")
    plain, salted = joblogs.plan(settings_for(path)), joblogs.plan(settings_for(path, salt_file=str(salt)))
    attributes, _ = shards_of(salted, tmp_path / ".")
    entries = joblogs.manifest_entries(salted, attributes)
    manifest = json.dumps(
        [entries, dict(salted.settings), dict(salted.counts), joblogs.summary(salted, entries)], ensure_ascii=False
    )
    written = b"".join((tmp_path / f"{task.name}.h5").read_bytes() for task in salted.shards) + manifest.encode()
    written += " ".join(task.where for task in salted.shards).encode()
    for word in ("müller", "secret", "grp-", "acc-", "correct horse"):
        assert word.encode() not in written
    users = entries["categories"][0]
    assert users["name"] == "user"
    wanted = hmac.new(b"correct horse battery staple", "user:müller0".encode(), hashlib.sha256).hexdigest()[:16]
    assert wanted in users["hashes"]
    assert len(users["hashes"]) == users["size"] - 1 == 3
    # Without a salt there is nothing to try names on, and the numbers are the same.
    assert "hashes" not in plain.categories[0]
    assert plain.digest == salted.digest
    salt.write_text("short")
    with pytest.raises(UsageError, match="holds 5 bytes; 16 or more are needed"):
        joblogs.plan(settings_for(path, salt_file=str(salt)))
    with pytest.raises(UsageError, match=r"salt_file .*none: not readable"):
        joblogs.plan(settings_for(path, salt_file=str(tmp_path / "none")))


def test_submission_features(tmp_path):
    runs = make_runs()
    plan = joblogs.plan(settings_for(write_log(tmp_path / "a.txt", runs), history=1))
    attributes, arrays = shards_of(plan, tmp_path)
    assert "outcome" not in plan.fields
    entries = joblogs.manifest_entries(plan, attributes)
    assert entries["features"]["submit"] == list(SUBMIT)
    rows = dict(zip(SUBMIT, joined(arrays, "submit")[:, 0].T, strict=True))
    moment = [datetime.fromtimestamp(int(time), UTC) for time in joined(arrays, "time")]
    day = np.array([time.hour * 3600 + time.minute * 60 + time.second for time in moment]) / 86400 * 2 * np.pi
    np.testing.assert_allclose(rows["hour_sin"], np.sin(day), atol=1e-6)
    week = np.array([time.weekday() for time in moment]) / 7 * 2 * np.pi
    np.testing.assert_allclose(rows["weekday_cos"], np.cos(week), atol=1e-6)
    np.testing.assert_allclose(rows["cpus"], 0, atol=1e-9)  # all equal
    assert rows["nodes_unknown"].all()
    assert not rows["timelimit_unknown"].any()
    assert 1 <= rows["first"].sum() <= 4  # of four users
    scale = entries["scaling"]["submit"]["since_previous_s"]
    since = rows["since_previous_s"] * scale["std"] + scale["mean"]
    assert np.expm1(since).max() > 600
    without = joblogs.plan(settings_for(tmp_path / "a.txt", timing=False))
    attributes, arrays = shards_of(without, tmp_path)
    names = joblogs.manifest_entries(without, attributes)["features"]["submit"]
    assert joined(arrays, "submit").shape[-1] == len(names) == len(SUBMIT) - 6
    assert "since_previous_s" not in joblogs.manifest_entries(without, attributes)["scaling"]["submit"]


def test_what_cancelled_and_preempted_mean_is_a_choice(tmp_path):
    runs = make_runs()
    path = write_log(tmp_path / "a.txt", runs)
    plan = joblogs.plan(settings_for(path, cancelled="failed", preempted="completed"))
    _, arrays = shards_of(plan, tmp_path)
    wanted = [run.state.startswith(("FAILED", "TIMEOUT", "CANCELLED")) for run in runs]
    np.testing.assert_array_equal(joined(arrays, "label"), wanted)


def test_unfinished_jobs_are_history_only(tmp_path):
    runs = make_runs()
    runs[5:25:2] = [dataclasses.replace(run, state="RUNNING", end=None) for run in runs[5:25:2]]
    plan = joblogs.plan(settings_for(write_log(tmp_path / "a.txt", runs)))
    assert plan.counts["train"]["num_unfinished"] == 10
    _, arrays = shards_of(plan, tmp_path)
    hidden = {run.submit for run in runs[5:25:2]}
    assert not hidden & set(joined(arrays, "time").tolist())


def test_many_shards_hold_the_same_as_one_also_from_gzip(tmp_path):
    runs = make_runs(3000)
    path = write_log(tmp_path / "a.txt", runs)
    packed = tmp_path / "b.txt.gz"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    one = joblogs.plan(settings_for(path, history=12))
    many = joblogs.plan(settings_for(packed, history=12, shard_mb=1))
    assert len(many.shards) > len(one.shards)
    left, right = shards_of(one, tmp_path)[1], shards_of(many, tmp_path)[1]
    for field in one.fields:
        np.testing.assert_array_equal(joined(left, field), joined(right, field))


def test_the_plan_follows_contents_and_settings_and_not_file_names(tmp_path):
    runs = make_runs()
    first = joblogs.plan(settings_for(write_log(tmp_path / "a.txt", runs)))
    assert joblogs.plan(settings_for(write_log(tmp_path / "b c/d.txt", runs))).digest == first.digest
    assert joblogs.plan(settings_for(tmp_path / "a.txt", history=6)).digest != first.digest
    assert joblogs.plan(settings_for(write_log(tmp_path / "e.txt", runs[1:]))).digest != first.digest


def test_a_log_changed_after_planning_is_named(tmp_path):
    path = write_log(tmp_path / "a.txt", make_runs())
    plan = joblogs.plan(settings_for(path))
    text = path.read_text()
    for damage in (text[:-5], text.replace("cl|", "|cl")):
        path.write_text(damage)
        with pytest.raises(FailedError, match=r"a\.txt: .*changed since it was planned"):
            joblogs.make_shard(plan, plan.shards[-1])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"history": 0}, "history is 0; it must be at least 1"),
        ({"delimiter": ""}, "delimiter is empty"),
        ({"test_fraction": 0.9, "val_fraction": 0.2}, "leave nothing to train"),
        ({"logs": ()}, "no file is given"),
        ({"live": True, "logs": ("a", "b")}, "logs is the one file"),
        ({"live": True, "format": "swf"}, "leave one out"),
        ({"format": "swf"}, "line 1: 1 fields; a line of SWF has 18"),
        ({"columns": ("jobid", "state")}, None),  # the header comes first
    ],
)
def test_what_cannot_be_is_refused(tmp_path, changes, message):
    settings = settings_for(write_log(tmp_path / "a.txt", make_runs(60)), **changes)
    if message is None:
        joblogs.plan(settings)
        return
    with pytest.raises(UsageError, match=message):
        joblogs.plan(settings)


def test_a_log_with_one_class_or_too_few_jobs_is_refused(tmp_path):
    runs = [
        dataclasses.replace(run, state=state)
        for run, state in zip(make_runs(4), ["COMPLETED", "CANCELLED"] * 2, strict=True)
    ]
    path = write_log(tmp_path / "a.txt", runs)
    with pytest.raises(
        UsageError, match=r"no job counts as failed; the states are: COMPLETED 2, CANCELLED 2; .*--cancelled failed"
    ):
        joblogs.plan(settings_for(path))
    with pytest.raises(UsageError, match="the val split gets no job: 4 jobs are too few"):
        joblogs.plan(settings_for(path, cancelled="failed"))


def test_live_asks_once_and_then_reads_its_file(tmp_path, monkeypatch, capsys):
    runs = make_runs()
    source = write_log(tmp_path / "answer", runs)
    program = tmp_path / "bin" / "sacct"
    program.parent.mkdir()
    program.write_text(
        f"#!{sys.executable}\nimport sys\nfrom pathlib import Path\n"
        f"print('JobID' if '--helpformat' in sys.argv else Path({str(source)!r}).read_text())\n"
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent))
    path = tmp_path / "kept.txt"
    plan = joblogs.plan(settings_for(path, live=True))
    assert sum(plan.states.values()) == len(runs)
    program.unlink()
    assert joblogs.plan(settings_for(path, live=True)).digest == plan.digest
    assert "is there already and is read as it is" in capsys.readouterr().err


@pytest.mark.skipif(not REAL.is_dir(), reason="the shared job logs are not on this machine")
def test_the_real_dump_without_a_header(tmp_path):
    log = REAL / "sacct" / "pozidriv.log"
    plan = joblogs.plan(Settings(logs=(str(log),), history=3))
    assert plan.states == {"COMPLETED": 10134, "FAILED": 1007, "CANCELLED": 468, "PREEMPTED": 86, "TIMEOUT": 9}
    attributes, arrays = shards_of(plan, tmp_path)
    counts = joblogs.manifest_entries(plan, attributes)["class_counts"]
    assert np.sum(list(counts.values()), axis=0).tolist() == [10134, 1007 + 9]
    assert joined(arrays, "mask").any()
    cells = [line.split("|") for line in log.read_text().splitlines()]
    names = {row[place] for row in cells for place in (5, 6, 8, 25)}
    text = json.dumps([joblogs.manifest_entries(plan, attributes), [task.where for task in plan.shards]])
    assert not [name for name in names if name in text]
    # Job names are hashes already in this dump; a few of them do.
    people = [*{row[8] for row in cells}, *sorted(names)[:20]]
    for task in plan.shards:
        shard = (tmp_path / f"{task.name}.h5").read_bytes()
        assert not [name for name in people if len(name) > 4 and name.encode() in shard]


@pytest.mark.slow
@pytest.mark.skipif(not REAL.is_dir(), reason="the shared job logs are not on this machine")
def test_the_real_workload_trace():
    log = REAL / "swf" / "RICC-2010-2.swf.gz"
    with pytest.raises(UsageError, match=r"no job counts as failed; the states are: COMPLETED 431549, CANCELLED 16245"):
        joblogs.plan(Settings(logs=(str(log),)))
    plan = joblogs.plan(Settings(logs=(str(log),), cancelled="failed", history=4))
    assert sum(len(task.items) for task in plan.shards) == 447_794
    fields = joblogs.make_shard(plan, plan.shards[-1]).fields
    assert len(fields["label"]) == len(plan.shards[-1].items)
