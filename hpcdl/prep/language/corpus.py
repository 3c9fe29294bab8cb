"""A running text as blocks of tokens for language models: found, split and cut without ever holding the text as a whole.

A corpus is a list of pieces of about 128 kB, each tokenized by itself. A shard is a run of pieces; its first block begins
with the last token of the piece before, so that every token but the first of a split is predicted exactly once.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from hpcdl.errors import UsageError
from hpcdl.prep.language.lines import TextFile
from hpcdl.prep.language.tokens import Ids, Tokenizer
from hpcdl.prep.partition import check_fractions
from hpcdl.prep.plan import SPLITS, ShardTask

Pieces = npt.NDArray[np.int64]
"""One row a piece: file, start and end in its stream, characters, and whether the file (a document) ends with it."""

_FILE, _START, _END, _CHARS, _LAST = range(5)
_SAMPLED_PIECES = 32


@dataclass(frozen=True, eq=False)
class Stretch:
    """The items of a shard: its pieces, and the one before the first if that is of the same split."""

    pieces: Pieces
    before: Pieces


def find_pieces(files: Sequence[TextFile]) -> Pieces:
    """The pieces of some files, in order; every byte is decoded on the way.

    Raises:
        UsageError: a file is damaged or no text of its encoding, or there is no text at all.
    """
    rows: list[tuple[int, int, int, int, int]] = []
    for number, file in enumerate(files):
        first = len(rows)
        rows += [(number, piece.start, piece.end, len(piece.text), 0) for piece in file.pieces()]
        if len(rows) > first:
            rows[-1] = (*rows[-1][:4], 1)
    if not rows:
        raise UsageError(f"{', '.join(str(file.path) for file in files)}: no text in it")
    return np.array(rows, np.int64).reshape(-1, 5)


def split_by_position(
    files: Sequence[TextFile], pieces: Pieces, val_fraction: float, test_fraction: float
) -> dict[str, Pieces]:
    """The first characters train, then come val and test; the borders move on to the next line if one begins soon.

    Raises:
        UsageError: the fractions are no shares, or the text is too short for them.
    """
    check_fractions(val_fraction, test_fraction)
    num_chars = int(pieces[:, _CHARS].sum())
    num_val, num_test = round(num_chars * val_fraction), round(num_chars * test_fraction)
    parts: dict[str, Pieces] = {}
    rest = pieces
    # Not so far that a split shrinks by more than a quarter.
    reach = min((number for number in (num_val, num_test) if number), default=0) // 4
    parts["train"], rest = _part(files, rest, num_chars - num_val - num_test, reach)
    # What the border took from the next split is missing there, not at the end.
    parts["val"], parts["test"] = _part(files, rest, int(rest[:, _CHARS].sum()) - num_test, reach)
    for split, fraction in (("train", 1.0), ("val", val_fraction), ("test", test_fraction)):
        if fraction > 0 and not len(parts[split]):
            raise UsageError(
                f"the {split} split gets no text: {num_chars} characters are too few for these fractions; give others, "
                "or 0 to leave a split out"
            )
    return {split: part for split, part in parts.items() if len(part)}


def texts(files: Sequence[TextFile], pieces: Pieces) -> Iterator[str]:
    """The text of each piece, in order; read as it is asked for."""
    for own in np.split(pieces, np.flatnonzero(np.diff(pieces[:, _FILE])) + 1):
        if len(own):
            yield from files[own[0, _FILE]].spans(own[:, [_START, _END]].tolist())


def tasks(
    files: Mapping[str, Sequence[TextFile]],
    splits: Mapping[str, Pieces],
    tokenizer: Tokenizer,
    block: int,
    shard_mb: int,
) -> tuple[ShardTask, ...]:
    """Shards of about equal text, none much above `shard_mb`: tokens a character are taken from a sample of pieces."""
    found: list[ShardTask] = []
    for split in SPLITS:
        if split not in splits:
            continue
        pieces = splits[split]
        sample = pieces[np.unique(np.linspace(0, len(pieces) - 1, _SAMPLED_PIECES).astype(int))]
        num_tokens = sum(len(tokenizer.encode(text)) for text in texts(files[split], sample))
        num_tokens = math.ceil(num_tokens * pieces[:, _CHARS].sum() / max(1, sample[:, _CHARS].sum()))
        # A block repeats one token and has its length beside it.
        token_bytes = np.dtype(tokenizer.dtype).itemsize * (block + 1) / block + 8 / block
        num_shards = min(len(pieces), max(1, math.ceil(num_tokens * token_bytes / (shard_mb * 1e6))))
        ends = np.cumsum(pieces[:, _CHARS])
        borders = np.searchsorted(ends, ends[-1] * np.arange(1, num_shards) / num_shards, side="left") + 1
        cuts = np.unique([0, *borders, len(pieces)]).tolist()
        for number, (start, stop) in enumerate(itertools.pairwise(cuts)):
            stretch = Stretch(pieces[start:stop], pieces[max(0, start - 1) : start])
            first, last = stretch.pieces[0], stretch.pieces[-1]
            where = (
                f"{files[split][first[_FILE]].path} from byte {first[_START]} to "
                f"{files[split][last[_FILE]].path} at byte {last[_END]}"
            )
            share = stretch.pieces[:, _CHARS].sum() / max(1, ends[-1])
            num_bytes = math.ceil(num_tokens * share * token_bytes)
            found.append(ShardTask(f"{split}-{number:05d}", split, stretch, where, num_bytes))
    return tuple(found)


def blocks(
    files: Sequence[TextFile], stretch: Stretch, tokenizer: Tokenizer, block: int, end_documents: bool
) -> tuple[dict[str, Ids], dict[str, int]]:
    """The fields and sums of one shard.

    Args:
        files: the split's.
        stretch: the shard's pieces.
        tokenizer: for the text.
        block: tokens to predict a sample; a row has one more.
        end_documents: put an end-of-sequence token behind every file.

    Raises:
        FailedError: a file has changed since the plan was made.
    """
    context = _encode(files, stretch.before, tokenizer, end_documents)[-1:]
    own = _encode(files, stretch.pieces, tokenizer, end_documents)
    stream = np.concatenate([context, own])
    # A lone token has nothing to be predicted from.
    num_blocks = math.ceil(max(0, len(stream) - 1) / block)
    padded = np.full(num_blocks * block + 1, tokenizer.special_ids["pad"], tokenizer.dtype)
    padded[: len(stream)] = stream[: len(padded)]
    windows = np.lib.stride_tricks.sliding_window_view(padded, min(block + 1, len(padded)))
    rows = windows[: num_blocks * block : block].reshape(num_blocks, block + 1)
    length = np.minimum(len(stream) - np.arange(num_blocks) * block, block + 1)
    sums = {"tokens_count": len(own), "tokens_unknown": tokenizer.count_unknown(own)}
    return {"tokens": rows, "length": length.astype(np.int64)}, sums


def _encode(files: Sequence[TextFile], pieces: Pieces, tokenizer: Tokenizer, end_documents: bool) -> Ids:
    parts = [np.empty(0, tokenizer.dtype)]
    end = np.array([tokenizer.special_ids["eos"]], tokenizer.dtype)
    for row, text in zip(pieces, texts(files, pieces), strict=True):
        parts.append(tokenizer.encode(text))
        if end_documents and row[_LAST]:
            parts.append(end)
    return np.concatenate(parts)


def _part(files: Sequence[TextFile], pieces: Pieces, num_chars: int, reach: int) -> tuple[Pieces, Pieces]:
    """The pieces of the first `num_chars` characters, up to `reach` more if a line begins there, and the others."""
    ends = np.cumsum(pieces[:, _CHARS])
    if num_chars <= 0:
        return pieces[:0], pieces
    place = int(np.searchsorted(ends, num_chars, side="left"))
    if place >= len(pieces) or ends[place] == num_chars:
        return pieces[: place + 1], pieces[place + 1 :]
    row = pieces[place]
    (text,) = texts(files, pieces[place : place + 1])
    inside = num_chars - int(ends[place] - row[_CHARS])
    line = text.find("\n", inside - 1) + 1
    inside = line if inside <= line <= min(inside + reach, len(text) - 1) else inside
    cut = files[row[_FILE]].offset_of(int(row[_START]), int(row[_END]), inside)
    first, second = row.copy(), row.copy()
    first[_END], first[_CHARS], first[_LAST] = cut, inside, 0
    second[_START], second[_CHARS] = cut, row[_CHARS] - inside
    return np.vstack([pieces[:place], first]), np.vstack([second, pieces[place + 1 :]])
