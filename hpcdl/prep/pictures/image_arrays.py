"""Labelled pictures as arrays: idx files as MNIST ships them, .npz as Keras and MedMNIST do, .npy with labels in another file."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from hpcdl.errors import FailedError, UsageError
from hpcdl.prep.pictures.array_files import ArrayFile, is_array_file, open_arrays
from hpcdl.prep.pictures.image_lists import Listing, Sample, split_in
from hpcdl.prep.pictures.reading import Form

Array = npt.NDArray[Any]

_IMAGE_WORDS = {"x", "image", "images", "img", "imgs", "data", "pictures", "features"}
_LABEL_WORDS = {"y", "label", "labels", "target", "targets", "class", "classes"}


def array_files_in(folder: Path) -> list[Path]:
    """The idx files in a folder that hold pictures, by name; of one that is there packed and unpacked, the latter."""
    files = (path for path in folder.iterdir() if path.is_file() and "images" in path.name.lower())
    found = {path.name: path for path in sorted(files) if is_array_file(path)}
    return [path for name, path in found.items() if name.removesuffix(".gz") == name or name[:-3] not in found]


def list_arrays(
    files: Sequence[Path], label_files: Sequence[Path]
) -> tuple[Listing, dict[tuple[Path, str | None], ArrayFile]]:
    """Samples of array files, and the arrays that hold the pictures.

    Args:
        files: idx, .npy or .npz files.
        label_files: one a file of pictures, in the same order; empty: in the .npz itself, or beside an idx file
            (labels-idx1 for images-idx3).

    Raises:
        UsageError: no labels, labels of another number, or of a form that is no class for each picture.
    """
    listing = Listing()
    images: dict[tuple[Path, str | None], ArrayFile] = {}
    if label_files and len(label_files) != len(files):
        raise UsageError(f"--labels: {len(label_files)} files for {len(files)} files of --images; give one for each")
    for number, path in enumerate(files):
        pairs: list[tuple[str | None, ArrayFile, ArrayFile]]
        if label_files:
            pairs = [(None, _only(path, "--images"), _only(label_files[number], "--labels"))]
        elif path.suffix.lower() == ".npz":
            pairs = _pairs_in(path)
        else:
            pairs = [(None, _only(path, "--images"), _only(_labels_beside(path), "--labels"))]
        for split, pixels, labels in pairs:
            if len(pixels.shape) not in (3, 4) or 0 in pixels.shape:
                raise UsageError(
                    f"{pixels.label}: has the shape {pixels.shape}; pictures are N × H × W, N × H × W × C or N × C × H × W"
                )
            values = _class_values(labels)
            if len(values) != pixels.shape[0]:
                raise UsageError(
                    f"{pixels.label}: holds {pixels.shape[0]} pictures, but {labels.label} holds {len(values)} labels"
                )
            split = split or (split_in(path.name.split(".")[0]) if len(files) > 1 else None)
            images[path, pixels.member] = pixels
            listing.samples += [
                Sample(path, value, split, row, pixels.member) for row, value in enumerate(values.tolist())
            ]
            listing.sources += [("images", path)] if ("images", path) not in listing.sources else []
            listing.sources += [("labels", labels.path)] if labels.path != path else []
    return listing, images


def to_picture(values: Array, dtype: str) -> Array:
    """A row of an array as C × H × W."""
    if values.ndim == 2:
        values = values[None]
    elif _channels_last(values.shape):
        values = values.transpose(2, 0, 1)
    return np.ascontiguousarray(values, dtype=dtype)


def scan(array: ArrayFile) -> tuple[Form, list[str]]:
    """What the pictures of an array are, and a digest of each: all of them are read once.

    Raises:
        UsageError: damaged, or values that do not fit in 8 or 16 bits without a loss.
    """
    digests: list[str] = []
    low, high = 0.0, 0.0
    try:
        for first, rows in array.runs():
            kind = rows.dtype.kind
            if kind not in "uif" or (kind == "f" and not np.array_equal(rows, np.rint(rows))):
                raise UsageError(
                    f"{array.label}: holds {array.dtype} values that are no whole numbers (rows from {first}); store "
                    "pictures as uint8, such as (x * 255).round().astype('uint8')"
                )
            low, high = min(low, float(rows.min())), max(high, float(rows.max()))
            whole = rows if rows.dtype in (np.uint8, np.uint16) else rows.astype(np.int64)
            digests += [hashlib.sha256(row.tobytes()).hexdigest() for row in np.ascontiguousarray(whole)]
    except FailedError as error:
        raise UsageError(str(error)) from None
    if low < 0 or high > 65535:
        raise UsageError(f"{array.label}: values from {low:g} to {high:g}; pictures hold 0 to 255, or to 65535")
    dtype = "uint16" if high > 255 or array.dtype.newbyteorder("=") == np.uint16 else "uint8"
    shape = array.shape
    if len(shape) == 3:
        return Form(1, shape[1], shape[2], dtype), digests
    channels, height, width = (shape[3], shape[1], shape[2]) if _channels_last(shape) else shape[1:]
    return Form(channels, height, width, dtype), digests


def _channels_last(shape: Sequence[int]) -> bool:
    """Whether the channels are the last axis; where both ends could be, they are, as in all libraries but PyTorch."""
    return shape[-1] <= 4 or shape[-3] > 4


def _only(path: Path, option: str) -> ArrayFile:
    arrays = open_arrays(path)
    if len(arrays) != 1:
        raise UsageError(f"{path}: holds {len(arrays)} arrays ({', '.join(arrays)}); {option} needs a file of one here")
    return next(iter(arrays.values()))


def _labels_beside(path: Path) -> Path:
    """The label file that MNIST has beside a file of pictures."""
    for before, after in (("images-idx3", "labels-idx1"), ("images.idx3", "labels.idx1"), ("images", "labels")):
        beside = path.with_name(path.name.replace(before, after))
        for candidate in (beside, beside.with_suffix(""), beside.with_name(beside.name + ".gz")):
            if beside.name != path.name and candidate.is_file() and is_array_file(candidate):
                return candidate
    raise UsageError(f"{path}: no label file lies beside it; name it with --labels")


def _pairs_in(path: Path) -> list[tuple[str | None, ArrayFile, ArrayFile]]:
    """(split, pictures, labels) of an .npz."""
    arrays = open_arrays(path)
    found: dict[str, dict[str | None, str]] = {"images": {}, "labels": {}}
    for name in arrays:
        words = set(re.split(r"[^a-z]+", name.lower()))
        role = "images" if words & _IMAGE_WORDS else "labels" if words & _LABEL_WORDS else None
        if role is None:
            continue
        split = split_in(name)
        if split in found[role]:
            raise UsageError(f"{path}: {found[role][split]!r} and {name!r} could both be the {role}; store one of them")
        found[role][split] = name
    if not found["images"] and len(arrays) == 2:
        deep, flat = sorted(arrays, key=lambda name: -len(arrays[name].shape))
        if len(arrays[flat].shape) < 3:
            found = {"images": {None: deep}, "labels": {None: flat}}
    if not found["images"] or found["images"].keys() != found["labels"].keys():
        raise UsageError(
            f"{path}: holds the arrays {', '.join(arrays) or 'none'}; needed are images and labels, or x_train, y_train, "
            "x_test, y_test, or train_images, train_labels, …"
        )
    return [(split, arrays[name], arrays[found["labels"][split]]) for split, name in found["images"].items()]


def _class_values(labels: ArrayFile) -> Array:
    """One class for each row: whole numbers or texts."""
    try:
        values = labels.read()
    except FailedError as error:
        raise UsageError(str(error)) from None
    if values.ndim == 2 and values.shape[1] == 1:
        values = values[:, 0]
    if values.ndim != 1:
        raise UsageError(f"{labels.label}: labels of the shape {values.shape}; one class for each picture is needed")
    if values.dtype.kind == "f" and np.array_equal(values, np.rint(values)):
        values = values.astype(np.int64)
    if values.dtype.kind == "S":
        values = np.char.decode(values, "utf-8")
    if values.dtype.kind not in "uibU":
        raise UsageError(f"{labels.label}: labels of type {values.dtype}; whole numbers or texts are classes")
    return values.astype(np.int64) if values.dtype.kind in "uib" else values
