from __future__ import annotations

from pathlib import Path

import pytest

from hpcdl.architecture import TRAIN_SETTINGS_FILE
from hpcdl.errors import UsageError
from hpcdl.settings import REQUIRED, build, read_settings, resolve
from hpcdl.train.settings import TrainSettings

SOURCE = '''
import module_that_does_not_exist
from dataclasses import dataclass, field
from typing import Annotated, Literal

@dataclass(frozen=True)
class Inner:
    lr: Annotated[float, Range(0)] = 0.1
    """Rate."""

@dataclass(frozen=True)
class Settings:
    needed: str
    """Must be given."""
    inner: Inner = field(default_factory=Inner)
    depth: Annotated[int, Range(1, 8)] = 4
    """How
    deep."""
    kind: Literal["a", "b"] = "a"
    sizes: tuple[int, ...] = (1, 2)
    name: str | None = None
    on: bool = False
'''


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "job.py"
    path.write_text(SOURCE)
    return path


def test_fields_are_read_without_importing_the_file(file: Path) -> None:
    known = read_settings(file)
    assert list(known) == ["needed", "inner.lr", "depth", "kind", "sizes", "name", "on"]
    assert known["needed"].default is REQUIRED
    assert known["depth"].help == "How deep."
    assert known["depth"].describe() == "int from 1 to 8"
    assert known["kind"].choices == ("a", "b")


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("depth", "3", 3),
        ("inner.lr", "3e-4", 3e-4),
        ("sizes", "4, 5", (4, 5)),
        ("sizes", "(7,)", (7,)),
        ("name", "none", None),
        ("on", "yes", True),
        ("kind", "b", "b"),
    ],
)
def test_text_becomes_a_value(file: Path, name: str, text: str, value: object) -> None:
    layers = [("--set", {name: text, "needed": "x"})]
    assert resolve(read_settings(file), layers, "job.py")[name] == value


@pytest.mark.parametrize(
    ("name", "text", "complaint"),
    [
        ("dept", "3", "Did you mean 'depth'?"),
        ("depth", "three", "expected int from 1 to 8"),
        ("depth", "9", "out of range"),
        ("depth", "2.5", "expected int"),
        ("inner.lr", "nan", "out of range"),
        ("kind", "c", "one of a, b"),
        ("on", "perhaps", "expected bool"),
    ],
)
def test_wrong_settings_are_refused_with_what_is_allowed(file: Path, name: str, text: str, complaint: str) -> None:
    with pytest.raises(UsageError) as error:
        resolve(read_settings(file), [("--set", {name: text, "needed": "x"})], "job.py")
    assert complaint in str(error.value)
    assert "--set" in str(error.value)


def test_a_place_may_hold_braces(file: Path) -> None:
    with pytest.raises(UsageError, match=r"^/a/\{x\}/hpcdl.yaml, depth: setting 'depth'"):
        resolve(read_settings(file), [("/a/{x}/hpcdl.yaml, {name}", {"depth": 9})], "job.py")


def test_a_required_setting_must_be_given(file: Path) -> None:
    with pytest.raises(UsageError, match="needs a value for needed"):
        resolve(read_settings(file), [], "job.py")


def test_a_field_of_another_type_is_refused_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "job.py"
    path.write_text("class Settings:\n    x: dict = 1\n")
    with pytest.raises(UsageError, match=r"job.py:2: a setting cannot be of type 'dict'"):
        read_settings(path)


def test_what_ast_reads_of_the_training_settings_is_what_python_builds() -> None:
    known = read_settings(TRAIN_SETTINGS_FILE, "TrainSettings")
    values = {name: setting.default for name, setting in known.items()}
    assert build(TrainSettings, values) == TrainSettings()
    changed = build(TrainSettings, {**values, "optimizer.lr": 0.5, "epochs": 3})
    assert (changed.optimizer.lr, changed.epochs) == (0.5, 3)
