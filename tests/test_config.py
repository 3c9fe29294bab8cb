from __future__ import annotations

from pathlib import Path

import pytest

from hpcdl.config import flatten, load_yaml
from hpcdl.errors import UsageError


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
        ("a: \x00", r"not usable YAML"),
    ],
)
def test_bad_yaml_is_one_line_with_its_place(tmp_path: Path, text: str, complaint: str) -> None:
    with pytest.raises(UsageError, match=complaint) as error:
        load_yaml(write(tmp_path, text))
    assert "\n" not in str(error.value)
    assert not (tmp_path / "pwned").exists()


def test_an_empty_file_is_an_empty_mapping(tmp_path: Path) -> None:
    assert load_yaml(write(tmp_path, "")).values == {}
