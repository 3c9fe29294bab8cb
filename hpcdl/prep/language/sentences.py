"""Texts of one line or row each, alone with a label or in pairs: found, dealt to splits, and encoded row by row.

A sample is a row of integers: for each of its texts (one, or source and target) the number of the file, start and end in
its stream, and last the label's index (-1 for none). Workers read the texts from there.
"""

from __future__ import annotations

import hashlib
import itertools
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from hpcdl.errors import UsageError
from hpcdl.prep.language.lines import Line, TextFile
from hpcdl.prep.language.tables import Record, Table
from hpcdl.prep.language.tokens import Ids, Tokenizer
from hpcdl.prep.partition import by_group, in_order
from hpcdl.prep.pictures.files import warn
from hpcdl.prep.plan import ShardContent
from hpcdl.prep.statistics import histogram

Rows = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Input:
    """A file of texts: lines, or rows of a table; `label` is that of all its lines, `side` is 1 for targets of pairs."""

    file: TextFile
    table: Table | None = None
    label: str | None = None
    side: int = 0


@dataclass
class Found:
    """The samples of some files, in order.

    Attributes:
        rows: see the module docstring; the label is an index into `labels`.
        groups: a digest of each sample's (first) text: equal texts are never parted.
        labels: all labels, in the order they came up.
        left_out: places of samples that workers will drop, as they lack a text or a label.
    """

    rows: Rows
    groups: list[str]
    labels: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class TextField:
    """A field of tokens: how its texts are encoded, and whether they get bos and eos around them."""

    name: str
    length_name: str
    tokenizer: Tokenizer
    bos: bool = False
    eos: bool = False

    @property
    def num_extra(self) -> int:
        """How many tokens are put around a text."""
        return self.bos + self.eos


def find_all(inputs: Mapping[str, Sequence[Input]], paired: bool) -> dict[str, Found]:
    """The samples of all files; says which will be dropped, and how many texts are in two splits.

    Raises:
        UsageError: a split has none, or what `find_pairs` and `find_sentences` raise.
    """
    find = find_pairs if paired else find_sentences
    found = {split: find(own) for split, own in inputs.items()}
    for split, own in found.items():
        if not len(own.rows):
            raise UsageError(f"{inputs[split][0].file.path}: the {split} text holds no samples")
    warn(f"{place}; the sample is dropped" for own in found.values() for place in own.left_out)
    train = set(found["train"].groups)
    shared = {split: sum(group in train for group in own.groups) for split, own in found.items() if split != "train"}
    warn(f"{number} texts of {split} are in train, too" for split, number in shared.items() if number)
    return found


def find_pairs(inputs: Sequence[Input]) -> Found:
    """The pairs of files of lines, the first source file with the first target file and so on.

    Raises:
        UsageError: unequal numbers of files or lines, or what `TextFile.lines` raises.
    """
    sides = [[(number, one.file) for number, one in enumerate(inputs) if one.side == side] for side in (0, 1)]
    if len(sides[0]) != len(sides[1]):
        raise UsageError(
            f"{len(sides[0])} source files and {len(sides[1])} target files; give one for one, in the same order"
        )
    rows = array("q")
    found = Found(np.empty((0, 7), np.int64), [])
    for (first, source), (second, target) in zip(*sides, strict=True):
        lines = itertools.zip_longest(source.lines(), target.lines())
        for one, other in lines:
            if one is None or other is None:
                shorter, longer, last = (source, target, other) if one is None else (target, source, one)
                more = sum(1 for _ in lines)
                raise UsageError(
                    f"{longer.path}: {last.number + more} lines, {shorter.path} has {last.number - 1}; lines that "
                    "translate each other must have the same number in both files"
                )
            if not one.text.strip() or not other.text.strip():
                empty = target if one.text.strip() else source
                found.left_out.append(f"{empty.path}:{one.number}: no text")
            rows.extend((first, one.start, one.end, second, other.start, other.end, -1))
            found.groups.append(_digest(one.text))
    found.rows = np.array(rows, np.int64).reshape(-1, 7)
    return found


def find_sentences(inputs: Sequence[Input]) -> Found:
    """The labelled texts of files of lines or tables, file after file.

    Raises:
        UsageError: what `TextFile.lines` and `Table.records` raise.
    """
    rows = array("q")
    found = Found(np.empty((0, 4), np.int64), [])
    known: dict[str, int] = {}
    for number, source in enumerate(inputs):
        items: Iterator[Line | Record] = (
            source.file.lines() if source.table is None else source.table.records(source.file)
        )
        for item in items:
            text, label = item.cells if isinstance(item, Record) else (item.text, source.label or "")
            if not text.strip() or not label:
                what = "no label" if text.strip() else "no text"
                found.left_out.append(f"{source.file.path}:{item.number}: {what}")
            index = known.setdefault(label, len(known)) if label else -1
            rows.extend((number, item.start, item.end, index))
            found.groups.append(_digest(text))
    found.rows = np.array(rows, np.int64).reshape(-1, 4)
    found.labels = list(known)
    return found


def deal(
    found: Found, how: Literal["random", "order"], val_fraction: float, test_fraction: float, seed: int
) -> dict[str, Rows]:
    """The samples of each split; by order, each file is cut by itself, as files may be classes.

    Raises:
        UsageError: the fractions are no shares, or there are too few samples.
    """
    if how == "random":
        return {
            split: found.rows[own] for split, own in by_group(found.groups, val_fraction, test_fraction, seed).items()
        }
    parts: dict[str, list[Rows]] = {}
    for rows in _by_file(found.rows):
        for split, own in in_order(len(rows), val_fraction, test_fraction).items():
            parts.setdefault(split, []).append(rows[own])
    return {split: np.concatenate(part) for split, part in parts.items()}


def label_rows(found: Mapping[str, Found], wanted: Sequence[str]) -> tuple[str, ...]:
    """Choose the classes, those wanted or else the labels of train, and make them what the labels of all rows count.

    Returns:
        The classes by index: labels that are all whole numbers by size, others by name.

    Raises:
        UsageError: a label that is no class, or fewer than two classes.
    """
    labels = set(found["train"].labels)
    if wanted:
        classes = list(dict.fromkeys(wanted))
    elif all(label.lstrip("+-").isdecimal() for label in labels):
        classes = sorted(labels, key=lambda label: (int(label), label))
    else:
        classes = sorted(labels)
    for split, own in found.items():
        others = sorted(set(own.labels) - set(classes))
        if others:
            shown = ", ".join(classes[:20]) + (", …" if len(classes) > 20 else "")
            raise UsageError(
                f"{split} text: the label {others[0]!r} is not one of the {len(classes)} classes {shown}; mend the file, "
                "or name all classes with --class-names"
            )
        # One entry more, so that -1, no label, stays -1.
        index = np.array([*map(classes.index, own.labels), -1])
        own.rows[:, -1] = index[own.rows[:, -1]]
    if len(classes) < 2:
        raise UsageError(
            f"{len(classes)} classes found ({', '.join(classes)}), at least two are needed; give one file a class as "
            "CLASS=FILE, or --text-column and --label-column of a table"
        )
    return tuple(classes)


def texts(inputs: Sequence[Input], rows: Rows, place: int) -> Iterator[str]:
    """The texts of one field of some samples, stripped; samples of a file must lie together and ascend.

    Args:
        inputs: the files.
        rows: the samples.
        place: 0 for the first or only text, 1 for the target.
    """
    for own in _by_file(rows[:, 3 * place : 3 * place + 3]):
        source = inputs[own[0, 0]]
        for text in source.file.spans(own[:, 1:].tolist()):
            yield (text if source.table is None else source.table.cells(text)[0]).strip()


def encode_rows(
    inputs: Sequence[Input],
    rows: Rows,
    fields: Sequence[TextField],
    max_tokens: int,
    truncate: bool,
    num_classes: int,
) -> ShardContent:
    """What one shard holds; samples without a text, label or, unless truncated, room are dropped.

    Args:
        inputs: the split's files.
        rows: the shard's samples.
        fields: of tokens, one a text.
        max_tokens: width of a row, with bos and eos.
        truncate: cut long texts instead of dropping their samples.
        num_classes: 0 for pairs, which have no labels.

    Raises:
        FailedError: a file has changed since the plan was made.
    """
    kept: list[list[Ids]] = [[] for _ in fields]
    labels: list[int] = []
    sums = {"num_empty": 0, "num_unlabelled": 0, "num_long": 0, "num_truncated": 0}
    streams = [texts(inputs, rows, place) for place in range(len(fields))]
    for label, *sample in zip(rows[:, -1].tolist(), *streams, strict=True):
        encoded = [one.tokenizer.encode(text) for one, text in zip(fields, sample, strict=True)]
        room = [max_tokens - one.num_extra for one in fields]
        long = any(len(ids) > free for ids, free in zip(encoded, room, strict=True))
        if not all(len(ids) for ids in encoded):
            sums["num_empty"] += 1
        elif num_classes and label < 0:
            sums["num_unlabelled"] += 1
        elif long and not truncate:
            sums["num_long"] += 1
        else:
            sums["num_truncated"] += long
            labels.append(label)
            for ids, free, own in zip(encoded, room, kept, strict=True):
                own.append(ids[:free])
    arrays: dict[str, npt.NDArray[Any]] = {}
    for one, own in zip(fields, kept, strict=True):
        arrays[one.name], arrays[one.length_name] = _padded(own, one, max_tokens)
        sums[f"{one.name}_count"] = sum(map(len, own))
        sums[f"{one.name}_unknown"] = sum(map(one.tokenizer.count_unknown, own))
    attributes: dict[str, Any] = dict(sums)
    if num_classes:
        arrays["label"] = np.array(labels, np.int64)
        attributes["label_histogram"] = histogram(arrays["label"], num_classes)
    return ShardContent(arrays, attributes, sums["num_empty"] + sums["num_unlabelled"] + sums["num_long"])


def _by_file(rows: Rows) -> list[Rows]:
    """The samples of each file, which is told by their first column."""
    parts = np.split(rows, np.flatnonzero(np.diff(rows[:, 0])) + 1)
    return [part for part in parts if len(part)]


def _padded(kept: Sequence[Ids], one: TextField, width: int) -> tuple[Ids, npt.NDArray[np.int64]]:
    """Rows of tokens with bos and eos, filled up with pad, and how many of each are no filling."""
    special = one.tokenizer.special_ids
    rows = np.full((len(kept), width), special["pad"], one.tokenizer.dtype)
    length = np.array([len(ids) + one.num_extra for ids in kept], np.int64)
    for row, ids in zip(rows, kept, strict=True):
        row[one.bos : one.bos + len(ids)] = ids
        if one.bos:
            row[0] = special["bos"]
        if one.eos:
            row[one.bos + len(ids)] = special["eos"]
    return rows, length


def _digest(text: str) -> str:
    return hashlib.blake2b(text.strip().encode(errors="surrogatepass"), digest_size=8).hexdigest()
