"""Tokenizers: fitted on train texts, applied by workers, written into the manifest and made again from there.

    tokenizer = from_json(manifest.entries["tokenizers"]["tokens"])
    print(tokenizer.decode(ids))

The four specials are always there; of tokenizers fitted here they are the ids 0 to 3.
"""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tokenizers import Regex, decoders, models, pre_tokenizers, trainers
from tokenizers import Tokenizer as Engine

from hpcdl.errors import UsageError

Ids = npt.NDArray[Any]

KINDS = ("chars", "bytes", "words", "bpe")
SPECIALS = {"pad": "<pad>", "unk": "<unk>", "bos": "<bos>", "eos": "<eos>"}
# Words keep their apostrophes and combining marks; other signs stand alone; ends of lines count; <unk> is what some
# corpora write for a rare word.
_WORD = r"<unk>|\w+(?:['’]\w+)*|[^\w\s]|\n"
# Unicode's sign for a character that is not known.
_UNKNOWN = "\ufffd"
_DEFAULT_SIZES = {"words": 50_000, "bpe": 8_000}
# How tokenizers of others call the specials.
_FOREIGN = {
    "pad": ("<pad>", "[PAD]", "<|padding|>", "<|pad|>"),
    "unk": ("<unk>", "[UNK]"),
    "bos": ("<bos>", "<s>", "[BOS]", "[CLS]", "<|begin_of_text|>", "<|startoftext|>"),
    "eos": ("<eos>", "</s>", "[EOS]", "[SEP]", "<|end_of_text|>", "<|endoftext|>"),
}


@dataclass(frozen=True)
class Tokenizer:
    """A fitted tokenizer. Picklable.

    Attributes:
        kind: one of KINDS, or "file" for one that was made elsewhere.
        vocab_size: ids are below it.
        special_ids: of pad, unk, bos, eos; one that was made elsewhere may have no unk.
        lowercase: whether texts are lowered first.
        symbols: of "chars", in the order of their ids, after the specials.
        engine_json: of words, bpe and file: a tokenizer.json of the library `tokenizers`.
    """

    kind: str
    vocab_size: int
    special_ids: Mapping[str, int]
    lowercase: bool = False
    symbols: str | None = None
    engine_json: str | None = None

    @property
    def dtype(self) -> str:
        """The smallest type for ids that shards use."""
        return "uint16" if self.vocab_size <= 1 << 16 else "int32"

    @property
    def num_symbols(self) -> int:
        """Size of the vocabulary without the specials."""
        return self.vocab_size - len(set(self.special_ids.values()))

    def encode(self, text: str) -> Ids:
        """The ids of a text, without specials around them."""
        if self.lowercase:
            text = text.lower()
        first = len(SPECIALS)
        if self.kind == "bytes":
            return (np.frombuffer(text.encode(), np.uint8) + np.uint16(first)).astype(self.dtype)
        if self.kind == "chars":
            points = np.frombuffer(text.encode("utf-32-le"), "<u4")
            table = self._table
            ids: Ids = table[np.minimum(points, len(table) - 1)]
            return ids
        # The call for batches leaves out where each token came from, which takes a third of the time.
        (encoded,) = self._engine.encode_batch_fast([text], add_special_tokens=False)
        return np.array(encoded.ids, self.dtype)

    def decode(self, ids: Sequence[int] | Ids) -> str:
        """The text of some ids; pad, bos and eos are left out, what is unknown is shown, and words are joined by spaces."""
        silent = {number for name, number in self.special_ids.items() if name != "unk"}
        plain = [int(number) for number in ids if int(number) not in silent]
        first = len(SPECIALS)
        if self.kind == "bytes":
            return bytes(number - first for number in plain if number >= first).decode(errors="replace")
        if self.kind == "chars":
            assert self.symbols is not None
            return "".join(self.symbols[number - first] if number >= first else _UNKNOWN for number in plain)
        return str(self._engine.decode(plain, skip_special_tokens=False))

    def count_unknown(self, ids: Ids) -> int:
        """How many of the ids stand for what the vocabulary does not have."""
        return int((ids == self.special_ids["unk"]).sum()) if "unk" in self.special_ids else 0

    def to_json(self) -> dict[str, Any]:
        """What the manifest keeps; all that `from_json` needs."""
        body = {key: value for key, value in vars(self).items() if key in _NAMES and value is not None}
        return {**body, "special_ids": dict(self.special_ids), "num_symbols": self.num_symbols}

    def __getstate__(self) -> dict[str, Any]:
        # Without what is made from the rest when it is first needed.
        return {key: value for key, value in vars(self).items() if key in _NAMES}

    @cached_property
    def _engine(self) -> Any:
        assert self.engine_json is not None
        engine = Engine.from_str(self.engine_json)
        # What a text says is text, even where it looks like a special; tokenizers of others know their own separators.
        engine.encode_special_tokens = self.kind != "file"
        return engine

    @cached_property
    def _table(self) -> Ids:
        """The id of each code point; the last entry stands for all higher ones."""
        assert self.symbols is not None
        points = [ord(symbol) for symbol in self.symbols]
        table = np.full(max(points, default=0) + 2, self.special_ids["unk"], self.dtype)
        table[points] = np.arange(len(points)) + len(SPECIALS)
        return table


_NAMES = tuple(field.name for field in dataclasses.fields(Tokenizer))


def from_json(entry: Mapping[str, Any]) -> Tokenizer:
    """The tokenizer of a manifest's entry."""
    return Tokenizer(**{name: entry[name] for name in _NAMES if name in entry})


def choose(kind: str, texts: Iterable[str], vocab_size: int | None, lowercase: bool) -> Tokenizer:
    """A tokenizer of one of KINDS, fitted on the texts as `fit` does, or one from a tokenizer.json, which takes no options.

    Raises:
        UsageError: neither, or options that do not fit.
    """
    if kind in KINDS:
        return fit(kind, texts, vocab_size, lowercase)
    if not Path(kind).exists():
        raise UsageError(f"tokenizer {kind!r} is not one of {', '.join(KINDS)}, and no file of that name is there")
    for name, value in (("vocab_size", vocab_size), ("lowercase", lowercase)):
        if value:
            raise UsageError(f"{name} is for tokenizers that are fitted here, {kind} is ready; leave it out")
    return read_tokenizer(Path(kind))


def fit(kind: str, texts: Iterable[str], vocab_size: int | None, lowercase: bool) -> Tokenizer:
    """A tokenizer whose vocabulary is that of the texts; the most frequent ones where `vocab_size` limits it.

    Args:
        kind: one of KINDS.
        texts: of the train split; read once, never held together.
        vocab_size: with the specials; by default all characters, 50,000 words, 8,000 byte-level BPE tokens.
        lowercase: lower all texts first.

    Raises:
        UsageError: a vocab_size that is too small, or that the kind does not have.
    """
    ids = {name: number for number, name in enumerate(SPECIALS)}
    if kind == "bytes":
        if vocab_size is not None:
            raise UsageError("vocab_size: bytes are always 256 (and 4 specials); leave --vocab-size out")
        return Tokenizer(kind, len(ids) + 256, ids, lowercase)
    least = len(ids) + (256 if kind == "bpe" else 1)
    if vocab_size is not None and vocab_size < least:
        raise UsageError(f"vocab_size is {vocab_size}; {kind} need at least {least}, with the {len(ids)} specials")
    lowered: Iterable[str] = (text.lower() for text in texts) if lowercase else texts
    if kind == "chars":
        counts: Counter[str] = Counter()
        for text in lowered:
            counts.update(text)
        kept = sorted(counts, key=lambda symbol: (-counts[symbol], symbol))
        symbols = "".join(sorted(kept[: None if vocab_size is None else vocab_size - len(ids)]))
        return Tokenizer(kind, len(ids) + len(symbols), ids, lowercase, symbols=symbols)
    size = vocab_size or _DEFAULT_SIZES[kind]
    named = list(SPECIALS.values())
    trainer: Any
    if kind == "words":
        engine = Engine(models.WordLevel(unk_token=SPECIALS["unk"]))
        engine.pre_tokenizer = pre_tokenizers.Split(Regex(_WORD), "removed", invert=True)
        # Counted as a word it would get a second id.
        lowered = (text.replace(SPECIALS["unk"], " ") for text in lowered)
        trainer = trainers.WordLevelTrainer(vocab_size=size, show_progress=False, special_tokens=named)
    else:
        engine = Engine(models.BPE())
        engine.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        engine.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(
            vocab_size=size, show_progress=False, special_tokens=named, initial_alphabet=alphabet
        )
    engine.train_from_iterator(lowered, trainer)
    return Tokenizer(kind, engine.get_vocab_size(), ids, lowercase, engine_json=_compact_json(engine))


def read_tokenizer(path: Path) -> Tokenizer:
    """A tokenizer.json that was made elsewhere; specials that it does not have are added after its own ids.

    Raises:
        UsageError: no such file, or not one of the library `tokenizers`.
    """
    try:
        text = path.read_text(encoding="utf-8")
        engine = Engine.from_str(text)
    except (OSError, UnicodeError) as error:
        raise UsageError(f"{path}: not readable: {getattr(error, 'strerror', None) or error}") from None
    except Exception as error:  # the library raises nothing more precise
        reason = " ".join(str(error).split())
        raise UsageError(f"{path}: not a tokenizer.json of the library `tokenizers`: {reason}") from None
    engine.no_truncation()
    engine.no_padding()
    ids: dict[str, int] = {}
    for name, spellings in _FOREIGN.items():
        vocabulary = engine.get_vocab()
        known = next((spelling for spelling in spellings if spelling in vocabulary), None)
        if known is None and name == "unk":
            continue
        if known is None:
            known = SPECIALS[name]
            engine.add_special_tokens([known])
        ids[name] = engine.get_vocab()[known]
    # Ids may have gaps, so the highest one decides.
    size = 1 + max(engine.get_vocab().values())
    return Tokenizer("file", size, ids, engine_json=_compact_json(engine))


def _compact_json(engine: Engine) -> str:
    """The engine as compact JSON; the library itself writes it in a stable order."""
    return json.dumps(json.loads(engine.to_str()), separators=(",", ":"), ensure_ascii=False)
