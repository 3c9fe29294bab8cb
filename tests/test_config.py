from __future__ import annotations

from pathlib import Path

import pytest

from hpcdl.config import SBATCH_SWITCHES, SBATCH_VARIABLES, environment_warnings, flatten, load_yaml, user_layers
from hpcdl.errors import UsageError
from hpcdl.resources import Resources


def write(folder: Path, text: str) -> Path:
    path = folder / "some.yaml"
    path.write_text(text)
    return path


def test_every_key_knows_its_line(tmp_path: Path) -> None:
    document = load_yaml(write(tmp_path, "a: 1\nb:\n  c: 2\n  d: {e: 3}\n"))
    assert document.lines == {"a": 1, "b": 2, "b.c": 3, "b.d": 4, "b.d.e": 4}
    assert flatten(document.values) == {"a": 1, "b.c": 2, "b.d.e": 3}


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("a: 1\nb: !!python/object/apply:os.system ['touch pwned']\n", r"some.yaml:2: not usable YAML: .*python"),
        ("a: 1\na: 2\n", r"some.yaml:2: the key 'a' stands twice"),
        ("a: [1\n", r"some.yaml:\d: not usable YAML"),
        ("- a\n", r"expected a mapping"),
        ("a: 1\nb: \x00", r"some.yaml:2: not usable YAML"),
        ("a: 1\nb: &b {c: *b}\n", r"some.yaml:2: .*holds itself"),
        ("a: 1\nb: &b [1, *b]\n", r"some.yaml:2: .*holds itself"),
        ("a: 1\nb: !!timestamp 2020-13-45\n", r"some.yaml:2: .*month"),
        ("a: 1\nb: !!int three\n", r"some.yaml:2: not usable YAML: .*three"),
        ("a: 1\nb: !!bool perhaps\n", r"some.yaml:2: not usable YAML"),
        ("a: 1\n? [b]\n: 2\n", r"some.yaml:2: .*a key must be text"),
        ("a: " + "[" * 2000, r"some.yaml: .*nested too deeply"),
    ],
)
def test_bad_yaml_is_one_line_with_its_place(tmp_path: Path, text: str, complaint: str) -> None:
    with pytest.raises(UsageError, match=complaint) as error:
        load_yaml(write(tmp_path, text))
    assert "\n" not in str(error.value)
    assert not (tmp_path / "pwned").exists()


def test_an_empty_file_is_an_empty_mapping(tmp_path: Path) -> None:
    assert load_yaml(write(tmp_path, "")).values == {}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("12:00:00", "12:00:00"),
        ("1:30:00.5", "1:30:00.5"),
        ("2020-01-02", "2020-01-02"),
        ("2020-13-45", "2020-13-45"),
        ("007", "007"),
        ("yes", "yes"),
        ("true", True),
        ("12", 12),
        ("-3", -3),
        ("0", 0),
        ("0.5", 0.5),
        ("1.0e-3", 1e-3),
        (".inf", float("inf")),
        ("~", None),
    ],
)
def test_only_what_looks_like_a_number_is_one(tmp_path: Path, text: str, value: object) -> None:
    found = load_yaml(write(tmp_path, f"a: {text}\n")).values["a"]
    assert (found, type(found)) == (value, type(value))


@pytest.mark.parametrize("key", ["yes", "1", "1.5", "2020-01-02", "~", "12:00:00"])
def test_a_key_is_text_and_an_unknown_one_is_named_with_its_line(workdir: Path, key: str) -> None:
    (workdir / "hpcdl.yaml").write_text(f"nodes: 1\n{key}: 2\n")
    with pytest.raises(UsageError, match=rf"hpcdl.yaml:2: unknown key '{key}'; allowed: .*nodes"):
        user_layers({"nodes"})


def test_aliases_and_merges_know_a_line(tmp_path: Path) -> None:
    document = load_yaml(write(tmp_path, "a: &a {x: 1}\nb:\n  <<: *a\n  y: 2\n"))
    assert document.values["b"] == {"x": 1, "y": 2}
    assert [document.where(key).rpartition(":")[2] for key in ("b.x", "b.y", "c")] == ["2", "4", "1"]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("nodes: 1\narchitectures: {unet: 3}\n", r"hpcdl.yaml:2: 'architectures.unet' must hold a mapping"),
        ("architectures:\n  unet: []\n", r"hpcdl.yaml:2: 'architectures.unet' must hold a mapping"),
        ("settings: 0\n", r"hpcdl.yaml:1: 'settings' must hold a mapping"),
    ],
)
def test_a_section_that_is_no_mapping_is_refused(workdir: Path, text: str, complaint: str) -> None:
    (workdir / "hpcdl.yaml").write_text(text)
    with pytest.raises(UsageError, match=complaint):
        user_layers({"nodes"})


def test_every_value_of_a_layer_knows_its_place(workdir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = workdir / "hpcdl.yaml"
    path.write_text("nodes: 3\nsettings:\n  optimizer: {lr: 1}\narchitectures:\n  unet:\n    width: 3\n  none:\n")
    monkeypatch.setenv("HPCDL_NODES", "2")
    monkeypatch.setenv("SBATCH_TIMELIMIT", "5")
    own, sbatch, file = user_layers({"nodes"})
    assert own.placed(own.values) == [("environment variable HPCDL_NODES", {"nodes": "2"})]
    assert sbatch.placed(sbatch.values) == [("environment variable SBATCH_TIMELIMIT", {"time": "5"})]
    assert file.placed(file.values) == [(f"{path}:1", {"nodes": 3})]
    assert file.placed(file.settings, "settings.") == [(f"{path}:3", {"optimizer.lr": 1})]
    assert file.placed(file.architectures["unet"], "architectures.unet.") == [(f"{path}:6", {"width": 3})]
    assert file.architectures["none"] == {}


def test_what_sbatch_reads_from_the_environment_is_an_option(workdir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert {*SBATCH_VARIABLES.values(), *(option for option, _ in SBATCH_SWITCHES.values())} <= set(
        Resources.__dataclass_fields__
    )
    monkeypatch.setenv("SBATCH_GPUS_PER_NODE", "2")
    monkeypatch.setenv("SBATCH_SIGNAL", "B:USR1@60")
    monkeypatch.setenv("SBATCH_NO_REQUEUE", "1")
    layer = user_layers({"nodes"})[1]
    assert layer.values == {"gpus_per_node": "2", "signal": "B:USR1@60", "requeue": False}
    monkeypatch.setenv("SBATCH_REQUEUE", "1")  # With both, sbatch requeues.
    assert user_layers({"nodes"})[1].values["requeue"] is True
    assert environment_warnings() == []


def test_a_variable_that_is_not_passed_on_is_warned_of(workdir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SBATCH_EXCLUSIVE", "user")
    monkeypatch.setenv("SBATCH_MEM", "4G")
    monkeypatch.setenv("SBATCH_HINT", "")
    other, mistaken = environment_warnings()
    assert "the real name is SBATCH_MEM_PER_NODE" in mistaken
    assert other.startswith("SBATCH_EXCLUSIVE is set; hpcdl does not pass it on; use --sbatch")
