from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from hpcdl.errors import FailedError, UsageError
from hpcdl.raster.legend import IGNORE_INDEX, ClassMap, load_legend, read_legend

RASTER = Path("labels.tif")
NLCD_CODES = [11, 12, 21, 22, 23, 24, 31, 41, 42, 43, 51, 52, 71, 72, 73, 74, 81, 82, 90, 95]


def write(tmp_path: Path, text: str) -> str:
    path = tmp_path / "classes.yaml"
    path.write_text(text)
    return str(path)


def test_nlcd_has_all_twenty_classes_with_names_and_colours():
    legend = load_legend("nlcd")
    assert [entry.code for entry in legend.classes] == NLCD_CODES
    assert legend.classes[0].name == "Open Water"
    assert legend.classes[0].color == (70, 107, 159)
    assert [entry.code for entry in legend.classes if entry.only == "Alaska"] == [51, 72, 73, 74]
    assert {0, 127, 250} <= legend.ignored.keys()


def test_only_classes_that_occur_get_an_index_unless_all_are_wanted():
    legend = load_legend("nlcd")
    counts = {-1: 5, 0: 7, 81: 3, 11: 2, 42: 0}
    assert [entry.code for entry in legend.select(counts, RASTER).classes] == [11, 81]
    assert len(legend.select(counts, RASTER, keep_all=True).classes) == 20


@pytest.mark.parametrize("dtype", ["uint8", "int64", "uint16"])
def test_codes_become_indices_and_everything_else_is_ignored(dtype):
    classes = load_legend("nlcd").select({11: 1, 42: 1, 95: 1}, RASTER)
    codes = np.array([[11, 42, 95], [0, 12, 255]], dtype)
    assert classes.indices(codes).tolist() == [[0, 1, 2], [IGNORE_INDEX] * 3]
    assert classes.indices(codes).dtype == np.uint8


def test_codes_out_of_range_never_end_in_an_index_error():
    classes = load_legend("nlcd").select({11: 1}, RASTER)
    assert classes.indices(np.array([-1, -9999, 65535])).tolist() == [IGNORE_INDEX] * 3
    assert classes.indices(np.zeros((0, 4), np.int64)).shape == (0, 4)
    with pytest.raises(FailedError, match="70000"):
        classes.indices(np.array([11, 70000]))


def test_an_unknown_code_is_refused_with_its_count_and_the_way_out():
    with pytest.raises(
        UsageError, match=r"labels\.tif: code 99 \(4 pixels; and 1 more such codes\).*--classes"
    ) as caught:
        load_legend("nlcd").select({11: 1, 99: 4, 100: 9}, RASTER)
    assert "\n" not in str(caught.value)


def test_a_raster_of_ignored_codes_only_is_refused():
    with pytest.raises(UsageError, match=r"labels\.tif: holds no class"):
        load_legend("nlcd").select({0: 100}, RASTER)


def test_a_classes_file_merges_codes_and_inherits_what_is_ignored(tmp_path):
    path = write(
        tmp_path,
        """
        name: coarse
        classes:
          - {code: 1, name: Water, color: "#466b9f", from: [11, 12]}
          - {code: 2, name: Forest, color: [104, 171, 95], from: [41, 42, 43]}
        ignore: [31, {code: 52, name: Shrub}]
        """,
    )
    legend = load_legend("nlcd", path)
    assert {0, 31, 52, 127, 250} <= legend.ignored.keys()
    classes = legend.select({0: 1, 12: 2, 31: 3, 42: 4, 52: 5}, RASTER)
    assert classes.indices(np.array([0, 11, 12, 31, 41, 42, 43, 52])).tolist() == [255, 0, 0, 255, 1, 1, 1, 255]
    entries = json.loads(json.dumps(classes.to_json()))
    assert entries[0] == {"index": 0, "code": 1, "name": "Water", "color": [70, 107, 159], "from": [11, 12]}
    assert ClassMap.from_json(entries) == classes
    with pytest.raises(UsageError, match="code 71"):
        legend.select({11: 1, 71: 2}, RASTER)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("classes: [{code: 1, nam: Water, color: '#466b9f'}]", "unknown key 'nam'.*Did you mean 'name'"),
        ("clases: [{code: 1}]", "needs a list 'classes'"),
        ("classes: [{code: 1, name: A, color: '#000000'}]\nfoo: 1", "unknown key 'foo'"),
        (
            "classes: [{code: 1, name: A, color: '#000000', from: [11]}, {code: 11, name: B, color: '#000000'}]",
            "code 11 is in 'A' and in 'B'",
        ),
        ("classes: [{code: 1, name: A, color: '#000000'}]\nignore: [1]", "code 1 is in 'A' and in 'ignore'"),
        (
            "classes: [{code: 1, name: A, color: '#000000'}, {code: 2, name: A, color: '#000000'}]",
            "two classes have the name",
        ),
        ("classes: [{code: 1, name: A, color: blue}]", "color 'blue'"),
        ("classes: [{code: 1, name: A, color: [0, 0, 256]}]", "color"),
        ("classes: [{code: -1, name: A, color: '#000000'}]", "code -1"),
        ("classes: [{code: yes, name: A, color: '#000000'}]", "code True"),
        ("classes: [{code: 1, name: A, color: '#000000', from: 11}]", "'from' of class number 1 is 11"),
        ("classes: [{code: 1, color: '#000000'}]", "needs a 'name'"),
        ("classes: [12]", "class number 1 is 12"),
        ("classes: [{code: 1, name: A, color: '#000000'}]\nignore: 3", "'ignore' is 3"),
        ("classes: [", "not readable as YAML"),
        ("!!python/object/apply:os.getcwd []", "not readable as YAML"),
    ],
)
def test_faulty_files_are_refused_in_one_line(tmp_path, text, message):
    with pytest.raises(UsageError, match=message) as caught:
        read_legend(Path(write(tmp_path, text)))
    assert "\n" not in str(caught.value)
    assert "classes.yaml" in str(caught.value)


def test_unknown_legends_are_refused(tmp_path):
    with pytest.raises(UsageError, match="nlcd"):
        load_legend("nldc")
    with pytest.raises(UsageError, match="nowhere"):
        load_legend("nlcd", str(tmp_path / "nowhere.yaml"))
