from __future__ import annotations

import dataclasses
import gzip
import os
import pickle
from pathlib import Path

import h5py
import numpy as np
import pytest

from hpcdl.errors import FailedError, UsageError
from hpcdl.prep import series
from hpcdl.prep.series import Settings
from hpcdl.shards.writer import write_shard_file

ROOT = Path(__file__).resolve().parents[2]
REAL = Path(os.environ.get("HPCDL_SHARED_DATA", ROOT.parent / "shared" / "data")) / "timeseries"


def write_table(path: Path, rows: list[str], header: str = "time,a,b") -> Path:
    path.write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    return path


def counting(folder: Path, count: int = 100, name: str = "t.csv") -> Path:
    return write_table(folder / name, [f"{i},{i},{i * i}" for i in range(count)])


def settings_for(path: Path, **changes) -> Settings:
    base = Settings(files=(str(path),), time_column="time", window=4, horizon=2, scaling="none")
    return dataclasses.replace(base, **changes)


def shards_of(plan, folder: Path):
    attributes, arrays = {}, {}
    for task in plan.shards:
        content = series.make_shard(pickle.loads(pickle.dumps(plan)), task)  # noqa: S301
        path = folder / f"{task.name}.h5"
        write_shard_file(path, content.fields, content.attributes)
        with h5py.File(path) as file:
            attributes[task.name] = dict(file.attrs)
            arrays[task.name] = {name: file[name][:] for name in file}
    return attributes, arrays


def joined(arrays, split: str, field: str):
    return np.concatenate([shard[field] for name, shard in arrays.items() if name.startswith(split)])


def test_windows_hold_what_comes_before_their_targets(tmp_path):
    plan = series.plan(settings_for(counting(tmp_path), inputs=("b", "a"), targets=("a",)))
    _, arrays = shards_of(plan, tmp_path)
    for split, (first, end) in {"train": (0, 70), "val": (70, 80), "test": (80, 100)}.items():
        starts = np.arange(first, end - 5)
        inputs, targets = joined(arrays, split, "inputs"), joined(arrays, split, "targets")
        np.testing.assert_array_equal(inputs[:, :, 1], starts[:, None] + np.arange(4))
        np.testing.assert_array_equal(inputs[:, :, 0], inputs[:, :, 1] ** 2)
        np.testing.assert_array_equal(targets[:, :, 0], starts[:, None] + [4, 5])
        np.testing.assert_array_equal(joined(arrays, split, "time"), starts + 4)
        assert targets.max() < end  # nothing of the next split
    for shard in arrays.values():
        assert shard["inputs"].dtype == np.float32
        assert shard["time"].dtype == np.int64
        assert {name: list(value.shape[1:]) for name, value in shard.items()} == {
            name: field["shape"] for name, field in plan.fields.items()
        }
    # Starts 65 to 69 and 75 to 79 would cross a border.
    assert [plan.counts[split]["num_buffer"] for split in ("train", "val", "test")] == [5, 5, 0]


@pytest.mark.parametrize("method", ["standard", "minmax"])
def test_the_scaling_knows_train_only_and_can_be_undone(tmp_path, method):
    path = counting(tmp_path)
    plan = series.plan(settings_for(path, scaling=method))
    attributes, arrays = shards_of(plan, tmp_path)
    entries = series.manifest_entries(plan, attributes)
    scale = entries["scaling"]["columns"]["b"]
    train = np.arange(70.0) ** 2
    wanted = (train.mean(), train.std()) if method == "standard" else (0, 69**2)
    np.testing.assert_allclose((scale["shift"], scale["scale"]), wanted)
    undone = joined(arrays, "test", "targets")[:, :, 1] * scale["scale"] + scale["shift"]
    np.testing.assert_allclose(undone, (np.arange(80, 95)[:, None] + [4, 5]) ** 2, rtol=1e-5)
    statistics = entries["statistics"]["inputs"]
    np.testing.assert_allclose(statistics["mean"], joined(arrays, "train", "inputs").mean((0, 1)), rtol=1e-5, atol=1e-6)
    # Other values in test change nothing of what train is scaled by.
    rows = [f"{i},{i},{i * i if i < 80 else 7}" for i in range(100)]
    other = series.plan(settings_for(write_table(tmp_path / "o.csv", rows), scaling=method))
    assert series.manifest_entries(other, attributes)["scaling"] == entries["scaling"]


@pytest.mark.parametrize("transform", ["difference", "log-return"])
def test_changes_and_their_base_give_the_levels_back(tmp_path, transform):
    levels = 50 + np.cumsum(np.random.default_rng(0).normal(size=100)).round(3)
    path = write_table(tmp_path / "t.csv", [f"{i},{v}" for i, v in enumerate(levels)], "time,a")
    plan = series.plan(settings_for(path, transform=transform))
    _, arrays = shards_of(plan, tmp_path)
    for split, (first, end) in {"train": (0, 70), "val": (70, 80), "test": (80, 100)}.items():
        starts = np.arange(first + 1, end - 5)  # the first change of a split would need the split before it
        changes = np.cumsum(joined(arrays, split, "targets")[:, :, 0].astype(float), axis=1)
        base = joined(arrays, split, "base")
        np.testing.assert_array_equal(base[:, 0], levels[starts + 3])
        back = base + changes if transform == "difference" else base * np.exp(changes)
        np.testing.assert_allclose(back, levels[starts[:, None] + [4, 5]], rtol=1e-5)


def test_series_in_long_form_share_the_borders_and_stay_apart(tmp_path):
    rows = [f"{name},{day},{value + day}" for day in range(40) for name, value in (("β b", 1000), ("a,x", 0))]
    rows = [row.replace("a,x", '"a,x"') for row in rows]
    path = write_table(tmp_path / "t.csv", rows, "symbol,time,price")
    plan = series.plan(settings_for(path, by="symbol", horizon=1, val_fraction=0.2))
    attributes, arrays = shards_of(plan, tmp_path)
    entries = series.manifest_entries(plan, attributes)
    assert [entry["name"] for entry in entries["series"]] == ["a,x", "β b"]
    assert entries["columns"] == {"inputs": ["price"], "targets": ["price"]}
    for split, first in (("train", 0), ("val", 24), ("test", 32)):
        inputs, index = joined(arrays, split, "inputs"), joined(arrays, split, "series")
        days = inputs[:, :, 0] - 1000 * index[:, None]
        assert days.min() == first
        np.testing.assert_array_equal(np.diff(days, axis=1), 1)
    assert entries["time"]["starts"] == {"val": 24, "test": 32}


def test_each_series_may_have_its_own_scale(tmp_path):
    rows = [f"{name},{t},{t * factor}" for name, factor in (("a", 1), ("b", 100)) for t in range(50)]
    rows += [f"late,{t},{t * 10}" for t in range(45, 50)]  # no train row
    path = write_table(tmp_path / "t.csv", rows, "s,time,v")
    plan = series.plan(settings_for(path, by="s", scaling="minmax", scale_per_series=True, val_fraction=0))
    attributes, _ = shards_of(plan, tmp_path)
    scaling = series.manifest_entries(plan, attributes)["scaling"]["series"]
    assert scaling["b"]["v"]["scale"] == 100 * scaling["a"]["v"]["scale"]
    assert scaling["late"]["v"]["scale"] == scaling["b"]["v"]["scale"]  # that of all series together
    text = "\n".join(series.summary(plan, series.manifest_entries(plan, attributes)))
    assert "1 series have no row in train: late" in text
    assert "scaled as all series together: late" in text


def test_missing_values_are_refused_filled_or_dropped(tmp_path):
    rows = [f"{i},{i},{'' if i in (20, 21, 70) else i}" for i in range(100)]
    path = write_table(tmp_path / "t.csv", rows)
    with pytest.raises(UsageError, match=r"t\.csv, line 22: the value of 'b' is missing \(3 such values\).*forward"):
        series.plan(settings_for(path))
    dropped = series.plan(settings_for(path, missing="drop"))
    _, arrays = shards_of(dropped, tmp_path)
    assert np.isfinite(joined(arrays, "train", "inputs")).all()
    assert dropped.counts["train"]["num_missing"] == 7
    assert dropped.counts["val"]["num_missing"] == 1
    assert len(joined(arrays, "train", "inputs")) == 65 - 7

    filled = series.plan(settings_for(path, missing="forward", shard_mb=1))
    _, arrays = shards_of(filled, tmp_path)
    train = joined(arrays, "train", "inputs")
    np.testing.assert_array_equal(train[20][:, 1], [19, 19, 22, 23])
    np.testing.assert_array_equal(train[21][:, 1], [19, 22, 23, 24])  # the source lies before the window
    # Row 70 opens val: nothing of train fills it.
    assert filled.counts["val"]["num_missing"] == 1
    assert joined(arrays, "val", "inputs")[0, 0, 1] == 71


def test_filling_reaches_back_beyond_the_rows_of_a_shard(tmp_path):
    rows = [f"{i},{i if i % 50 == 0 else 'NA'}" for i in range(400)]
    plan = series.plan(settings_for(write_table(tmp_path / "t.csv", rows, "time,a"), missing="forward"))
    whole = series.make_shard(plan, plan.shards[0]).fields["inputs"]
    # The same windows in many small shards.
    one = plan.shards[0].items
    part = dataclasses.replace(one, starts=one.starts[40:45], time=one.time[40:45])
    small = series.make_shard(plan, dataclasses.replace(plan.shards[0], items=part)).fields["inputs"]
    np.testing.assert_array_equal(small, whole[40:45])
    assert (whole[45:47, :, 0] == 0).all()


def test_many_shards_hold_the_same_as_one(tmp_path):
    values = np.random.default_rng(1).normal(size=3000)
    values[np.random.default_rng(2).random(3000) < 0.2] = np.nan
    rows = [f"{i},{'' if np.isnan(v) else v}" for i, v in enumerate(values)]
    path = write_table(tmp_path / "t.csv", rows, "time,a")
    for transform in ("none", "difference"):
        base = settings_for(
            path, window=300, missing="forward", transform=transform, scaling="standard", val_fraction=0
        )
        one, many = series.plan(base), series.plan(dataclasses.replace(base, shard_mb=1))
        assert len(many.shards) > len(one.shards)
        left, right = shards_of(one, tmp_path)[1], shards_of(many, tmp_path)[1]
        for field in one.fields:
            np.testing.assert_array_equal(joined(left, "train", field), joined(right, "train", field))


def test_unsorted_and_double_rows(tmp_path):
    order = np.random.default_rng(0).permutation(100)
    path = write_table(tmp_path / "t.csv", [f"{i},{i},1" for i in order])
    plan = series.plan(settings_for(path))
    _, arrays = shards_of(plan, tmp_path)
    assert (np.diff(joined(arrays, "train", "inputs")[:, :, 0], axis=1) == 1).all()
    assert any("sorted by time" in note for note in plan.notes)
    double = write_table(tmp_path / "d.csv", [*(f"{i},{i},1" for i in range(100)), "10,-1,1"])
    with pytest.raises(UsageError, match=r"line 102: time 10 is there already, in line 12 of d\.csv \(1 such rows\)"):
        series.plan(settings_for(double))
    for choice, wanted in (("first", 10), ("last", -1)):
        plan = series.plan(settings_for(double, duplicates=choice))
        assert shards_of(plan, tmp_path)[1]["train-00000"]["inputs"][10, 0, 0] == wanted
        assert any("1 rows of a time" in note for note in plan.notes)


def test_no_window_goes_over_a_gap(tmp_path):
    path = write_table(tmp_path / "t.csv", [f"{i + 100 * (i >= 30)},{i},0" for i in range(100)])
    plan = series.plan(settings_for(path, max_gap=10))
    inputs = joined(shards_of(plan, tmp_path)[1], "train", "inputs")[:, :, 0]
    assert not ((inputs.min(axis=1) < 30) & (inputs.max(axis=1) >= 30)).any()
    assert "longest gap is 101" in plan.notes[0]
    assert plan.counts["train"]["num_buffer"] == 10


def test_explicit_borders_and_strides(tmp_path):
    rows = [f"2020-{1 + i // 28:02}-{1 + i % 28:02},{i}" for i in range(28 * 12)]
    path = write_table(tmp_path / "t.csv", rows, "time,a")
    plan = series.plan(settings_for(path, val_start="2020-09-01", test_start="2020-11-01", stride=3))
    _, arrays = shards_of(plan, tmp_path)
    assert joined(arrays, "train", "targets").max() < 28 * 8
    assert joined(arrays, "val", "inputs").min() == 28 * 8
    assert joined(arrays, "test", "inputs").min() == 28 * 10
    assert (np.diff(joined(arrays, "train", "inputs")[:, 0, 0]) == 3).all()
    assert "test begins at 2020-11-01" in series.summary(plan, {"time": {"starts": plan.starts}})
    with pytest.raises(UsageError, match="val_start is not before test_start"):
        series.plan(settings_for(path, val_start="2020-11-01", test_start="2020-11-01"))
    with pytest.raises(UsageError, match="val_start 'soon' is no time"):
        series.plan(settings_for(path, val_start="soon"))


def test_row_order_and_files_that_are_series(tmp_path):
    for name, start in (("x.csv", 0), ("y y.csv", 500)):
        write_table(tmp_path / name, [f"{start + i}" for i in range(50)], "v")
    parts = settings_for(tmp_path / "*.csv", time_column=None, val_fraction=0)
    plan = series.plan(parts)
    assert plan.names == ("",)
    own = series.plan(dataclasses.replace(parts, files_are="series"))
    assert own.names == ("x", "y y")
    _, arrays = shards_of(own, tmp_path)
    assert set(joined(arrays, "test", "series")) == {0, 1}
    assert (np.diff(joined(arrays, "train", "inputs")[:, :, 0], axis=1) == 1).all()


def test_the_plan_follows_contents_and_settings_and_not_file_names(tmp_path):
    path = counting(tmp_path)
    first = series.plan(settings_for(path))
    assert series.plan(settings_for(counting(tmp_path, name="other name.csv"))).digest == first.digest
    assert series.plan(settings_for(path, window=5)).digest != first.digest
    assert series.plan(settings_for(counting(tmp_path, 101, "u.csv"))).digest != first.digest


def test_a_shard_has_the_same_bytes_every_time_also_from_gzip(tmp_path):
    path = counting(tmp_path)
    packed = tmp_path / "t.csv.gz"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    made = []
    for source in (path, path, packed):
        plan = series.plan(settings_for(source, scaling="standard"))
        content = series.make_shard(plan, plan.shards[0])
        write_shard_file(tmp_path / "x.h5", content.fields, content.attributes)
        made.append((tmp_path / "x.h5").read_bytes())
    assert made[0] == made[1] == made[2]


def test_a_file_changed_or_damaged_after_planning_is_named(tmp_path):
    path = counting(tmp_path)
    plan = series.plan(settings_for(path))
    text = path.read_text()
    path.write_text(text[:-10])
    with pytest.raises(FailedError, match=r"t\.csv: has changed since it was planned"):
        series.make_shard(plan, plan.shards[0])
    path.write_text("x" * len(text))
    with pytest.raises(FailedError, match=r"t\.csv"):
        series.make_shard(plan, plan.shards[0])
    path.unlink()
    with pytest.raises(FailedError, match=r"t\.csv: not readable"):
        series.make_shard(plan, plan.shards[0])


def test_columns_of_texts_are_left_out_and_those_of_numbers_must_hold_numbers(tmp_path, capsys):
    rows = [f"{i},word{i},{'' if i < 120 else i},{i}" for i in range(300)]
    path = write_table(tmp_path / "t.csv", rows, "time,text,late,a")
    plan = series.plan(settings_for(path, missing="drop"))
    assert plan.reader.inputs == ("late", "a")
    assert "left out, as they hold no numbers: text\n" in capsys.readouterr().err
    rows[250] = "250,word,12.5x,250"
    path = write_table(tmp_path / "t.csv", rows, "time,text,late,a")
    with pytest.raises(UsageError, match=r"t\.csv, line 252: column 'late': '12\.5x' is no number"):
        series.plan(settings_for(path, missing="drop"))
    with pytest.raises(UsageError, match=r"line 2: column 'text': 'word0' is no number"):
        series.plan(settings_for(path, inputs=("text",)))
    with pytest.raises(UsageError, match="no column of numbers; there are: time, text"):
        series.plan(settings_for(write_table(tmp_path / "u.csv", ["1,x"], "time,text")))


def test_constant_columns_and_decimal_commas(tmp_path):
    path = write_table(tmp_path / "t.csv", [f"{i};0,1;{i},5" for i in range(100)], "time;a;b")
    for method in ("standard", "minmax"):
        plan = series.plan(settings_for(path, decimal_comma=True, scaling=method))
        attributes, arrays = shards_of(plan, tmp_path)
        np.testing.assert_allclose(joined(arrays, "test", "inputs")[:, :, 0], 0, atol=1e-6)
        assert "warning: constant in train, so only shifted: a" in series.summary(
            plan, series.manifest_entries(plan, attributes)
        )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"window": 0}, "window is 0; it must be at least 1"),
        ({"window": 200}, "window 200 and horizon 2 need 202 rows in a row, the longest series has 100"),
        ({"window": 9}, "the val split gets no window: each needs 9 . 2 rows in a row.* this split has 10 at most"),
        ({"test_fraction": 0.5, "val_fraction": 0.5}, "leave nothing to train"),
        ({"max_gap": -1.0}, "max_gap is -1"),
        ({"inputs": ("A",)}, r"--inputs: no column 'A'; there are: time, a, b"),
        ({"targets": ("c",)}, r"--targets: no column 'c'"),
        ({"targets": ("time",)}, "target 'time' is no column of numbers"),
        ({"time_column": "date"}, "--time-column: no column 'date'"),
        ({"by": "time"}, "by and time_column are both 'time'"),
        ({"inputs": ("a", "a")}, "inputs names a column twice"),
        ({"time_column": None, "time_format": "iso"}, "time_format is given without time_column"),
        ({"time_format": "day"}, "time_format 'day' is no format"),
        ({"files": ()}, "no file is given"),
        ({"files": ("nothing*.csv",)}, r"nothing\*\.csv: no such file"),
        ({"encoding": "klingon"}, "encoding 'klingon' is not known"),
        ({"transform": "log-return"}, r"line 2: the value of 'a' is not above 0 \(2 such values\)"),
    ],
)
def test_what_cannot_be_is_refused(tmp_path, changes, message):
    with pytest.raises(UsageError, match=message):
        series.plan(settings_for(counting(tmp_path), **changes))


@pytest.mark.skipif(not REAL.is_dir(), reason="the shared series are not on this machine")
def test_the_real_series(tmp_path):
    stocks = Settings(
        files=(str(REAL / "stocks.csv"),),
        time_column="date",
        by="symbol",
        window=12,
        val_fraction=0.2,
        transform="log-return",
    )
    plan = series.plan(stocks)
    assert plan.names == ("AAPL", "AMZN", "GOOG", "IBM", "MSFT")
    assert plan.notes[0].startswith("560 rows of 5 series")
    _, arrays = shards_of(plan, tmp_path)
    assert sum(len(shard["time"]) for shard in arrays.values()) == 265 + 50 + 50
    index = Settings(files=(str(REAL / "sp500-2000.csv"),), time_column="date", targets=("close",))
    plan = series.plan(index)
    assert plan.reader.inputs == ("open", "high", "low", "close", "adjclose", "volume")
    assert plan.notes[0].startswith("5105 rows of 1 series")
    plan = series.plan(Settings(files=(str(REAL / "sp500.csv"),), time_column="date", window=6))
    assert plan.form == "%b %d %Y"
    assert plan.notes[0].startswith("123 rows")
