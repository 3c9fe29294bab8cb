from __future__ import annotations

import json
from pathlib import Path

import pytest

from hpcdl.errors import UsageError
from hpcdl.prep.pictures.annotations import read_annotations


def voc(path: Path, boxes, size=(30, 40), filename: str | None = None, encoding: str = "utf-8") -> Path:
    """A VOC file; a box is (label, xmin, ymin, xmax, ymax) and what else an object may say."""
    objects = ""
    for label, *corners in boxes:
        names = ("xmin", "ymin", "xmax", "ymax")
        box = "".join(f"<{name}>{value}</{name}>" for name, value in zip(names, corners, strict=False))
        difficult = "".join(f"<difficult>{value}</difficult>" for value in corners[4:])
        objects += f"<object><name>{label}</name>{difficult}<bndbox>{box}</bndbox></object>\n"
    body = f"<size><width>{size[1]}</width><height>{size[0]}</height><depth>3</depth></size>"
    name = "" if filename is None else f"<filename>{filename}</filename>"
    path.parent.mkdir(parents=True, exist_ok=True)
    head = f'<?xml version="1.0" encoding="{encoding}"?>\n'
    path.write_bytes(f"{head}<annotation>{name}{body}{objects}</annotation>".encode(encoding))
    return path


def coco(path: Path, images, annotations, categories=((3, "cat"), (7, "dog"))) -> Path:
    """A COCO file; images are (id, name, height, width), annotations (image, category, bbox) and what else."""
    body = {
        "images": [{"id": i, "file_name": n, "height": h, "width": w} for i, n, h, w in images],
        "annotations": [
            {"id": number, "image_id": image, "category_id": category, "bbox": box, "segmentation": [[1, 2]], **more}
            for number, (image, category, box, more) in enumerate(annotations, start=100)
        ],
        "categories": [{"id": number, "name": name} for number, name in categories],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(body), encoding="utf-8-sig")
    return path


def test_voc_boxes_are_read_in_the_order_of_the_names(tmp_path):
    voc(tmp_path / "sub" / "b ü.xml", [("cät", 1, 2, 3.5, 4, 1)], filename="C:\\x\\other.jpg", encoding="utf-8")
    voc(tmp_path / "a.xml", [("dog", 5, 6, 7, 8)], size=(0, 0), encoding="latin-1")
    (tmp_path / "._a.xml").write_bytes(b"litter")
    found = read_annotations([str(tmp_path)], one_based=False)
    first, second = found.pictures
    assert (first.names, first.size, second.names, second.size) == (("a",), None, ("sub/b ü", "other.jpg"), (30, 40))
    assert first.boxes[0].corners == (5, 6, 7, 8)
    assert (second.boxes[0].label, second.boxes[0].difficult, first.boxes[0].difficult) == ("cät", True, False)
    one = read_annotations([str(tmp_path / "a.xml")], one_based=True)
    assert one.pictures[0].boxes[0].corners == (4, 5, 7, 8)


def test_voc_boxes_that_are_none_are_told(tmp_path):
    boxes = [("", 1, 2, 3, 4), ("cat", 1, 2, 3), ("cat", 1, "x", 3, 4), ("cat", 1, "nan", 3, 4), ("cat", 1, 2, 3, 4)]
    path = voc(tmp_path / "a.xml", boxes)
    found = read_annotations([str(path)], one_based=False)
    assert len(found.pictures[0].boxes) == 1
    assert [text.removeprefix(f"{path}: ") for _, text in found.problems] == [
        "box 1 (no name): no name",
        "box 2 (cat): no complete bndbox",
        "box 3 (cat): 1, x, 3, 4 are not numbers",
        "box 4 (cat): 1, nan, 3, 4 are not numbers",
    ]


def test_coco_boxes_are_corners_and_categories_keep_their_ids(tmp_path):
    annotations = [(9, 7, [1, 2, 3, 4.5], {"iscrowd": 1}), (2, 3, [0, 0, 5, 5], {})]
    path = coco(tmp_path / "a.json", [(9, "x/ü.jpg", 30, 40), (2, "b.jpg", 30, 40)], annotations)
    found = read_annotations([str(path)], one_based=False)
    assert found.categories == [(3, "cat"), (7, "dog")]
    first, second = found.pictures
    assert (first.names, first.source_id, first.boxes[0].corners) == (("x/ü.jpg",), 9, (1, 2, 4, 6.5))
    assert (first.boxes[0].difficult, second.boxes[0].difficult, second.boxes[0].label) == (True, False, "cat")


def test_coco_boxes_that_are_none_are_told(tmp_path):
    bad = [(9, 7, [1, 2, 3], {}), (9, 5, [1, 2, 3, 4], {}), (8, 7, [1, 2, 3, 4], {}), (9, 7, [5, 5, -1, 2], {})]
    bad += [(9, 7, None, {}), (9, 7, [1, 2, float("nan"), 3], {})]
    found = read_annotations([str(coco(tmp_path / "a.json", [(9, "x.jpg", 30, 40)], bad))], one_based=False)
    assert found.pictures[0].boxes == ()
    assert [place for place, _ in found.problems] == [0, 0, -1, 0, 0, 0]
    told = "\n".join(text for _, text in found.problems)
    for part in ("annotation 100: bbox [1, 2, 3] is not four", "category 5 is not", "image 8 is not", "negative side"):
        assert part in told


@pytest.mark.parametrize(
    ("name", "body", "message"),
    [
        ("a.xml", "<annotation>\n<object>", r"a\.xml:2: not XML"),
        ("a.xml", "", r"a\.xml:1: not XML"),
        ("a.xml", "<svg/>", "its root is <svg>"),
        ("a.json", "{", r"a\.json: not JSON"),
        ("a.json", "[]", "it needs the lists images, annotations, categories"),
        ("a.json", '{"images": [{"id": 1}], "annotations": [], "categories": []}', "lacks 'file_name'"),
        (
            "a.json",
            '{"images": [], "annotations": [], "categories": [{"id": 1, "name": "a"}, {"id": 1, "name": "b"}]}',
            "two categories have the same id",
        ),
        (
            "a.json",
            '{"images": [], "annotations": [], "categories": [{"id": 1, "name": "a"}, {"id": 2, "name": "a"}]}',
            "two categories are named 'a'",
        ),
    ],
)
def test_files_that_are_no_annotations_are_refused(tmp_path, name, body, message):
    (tmp_path / name).write_text(body)
    with pytest.raises(UsageError, match=message):
        read_annotations([str(tmp_path / name)], one_based=False)


def test_what_does_not_go_together_is_refused(tmp_path):
    one, other = voc(tmp_path / "v" / "a.xml", []), coco(tmp_path / "a.json", [], [])
    with pytest.raises(UsageError, match="VOC and COCO annotations do not go together"):
        read_annotations([str(one), str(other)], one_based=False)
    with pytest.raises(UsageError, match="one_based is for VOC"):
        read_annotations([str(other)], one_based=True)
    with pytest.raises(UsageError, match="no such file or folder"):
        read_annotations([str(tmp_path / "missing")], one_based=False)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="holds no XML file"):
        read_annotations([str(tmp_path / "empty")], one_based=False)
