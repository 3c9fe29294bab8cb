"""Turn text into tokens: a corpus for language models, sentence pairs for translation, or labelled sentences.

    hpcdl preprocess text --corpus input.txt --tokenizer chars --block 256 -o data/shakespeare

Give --corpus, --source and --target, or --sentences. Tokenizers are fitted on the train split and kept in the manifest.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np

from hpcdl.errors import UsageError
from hpcdl.prep import plan as plans
from hpcdl.prep.language import corpus, sentences
from hpcdl.prep.language.inputs import Reading, open_inputs
from hpcdl.prep.language.lines import TextFile
from hpcdl.prep.language.modes import OPTIONS, PATHS, flag_of, mode_of
from hpcdl.prep.language.sentences import Input, TextField
from hpcdl.prep.language.tokens import KINDS, Tokenizer, choose
from hpcdl.prep.pictures.files import warn
from hpcdl.resources import Range

# Part of every plan's digest: raise it when the same settings and sources come to mean other bytes.
_REVISION = 1


FILES = (
    "corpus",
    "val_corpus",
    "test_corpus",
    "source",
    "target",
    "val_source",
    "val_target",
    "test_source",
    "test_target",
)
"""Settings that name files or globs: checked before a job is queued."""


@dataclass(frozen=True)
class Settings:
    """What `hpcdl preprocess text` accepts."""

    corpus: tuple[str, ...] = ()
    """Files or globs of running text, for language models; split by position unless val or test files are given"""
    val_corpus: tuple[str, ...] = ()
    """Running text of the val split"""
    test_corpus: tuple[str, ...] = ()
    """Running text of the test split"""
    source: tuple[str, ...] = ()
    """Files of one sentence a line, to translate from"""
    target: tuple[str, ...] = ()
    """Their translations, line by line"""
    val_source: tuple[str, ...] = ()
    """Sentences of the val split"""
    val_target: tuple[str, ...] = ()
    """Their translations"""
    test_source: tuple[str, ...] = ()
    """Sentences of the test split"""
    test_target: tuple[str, ...] = ()
    """Their translations"""
    sentences: tuple[str, ...] = ()
    """Labelled sentences: CLASS=FILE with one sentence a line, or tables with text_column and label_column"""
    val_sentences: tuple[str, ...] = ()
    """Labelled sentences of the val split, written the same way"""
    test_sentences: tuple[str, ...] = ()
    """Labelled sentences of the test split, written the same way"""
    text_column: str | None = None
    """Column of a CSV or TSV file that holds the text"""
    label_column: str | None = None
    """Column that holds the label"""
    quotes: Literal["auto", "yes", "no"] = "auto"
    """Whether quotes hold the cells of a table together; auto is yes, except where tabs part them"""
    class_names: tuple[str, ...] = ()
    """Labels in the order of their indices; give it once a label (default: those that occur, sorted)"""
    encoding: str = "utf-8"
    """Encoding of all text files, such as latin-1, cp1252, utf-16"""
    tokenizer: str = "bpe"
    """chars, bytes, words, bpe (of bytes), or a tokenizer.json"""
    target_tokenizer: str | None = None
    """The same for target (default: as tokenizer)"""
    shared_vocab: bool = False
    """Fit one tokenizer for source and target"""
    vocab_size: Annotated[int, Range(5)] | None = None
    """Size of a vocabulary, with its 4 specials (default: 8000 for bpe, 50000 for words, all for chars)"""
    lowercase: bool = False
    """Lower all texts first"""
    block: Annotated[int, Range(1)] = 256
    """Tokens to predict in a sample of a corpus"""
    end_of_document: bool = False
    """Put an end-of-sequence token behind each file of a corpus"""
    max_tokens: Annotated[int, Range(1)] = 128
    """Width of a row of tokens for pairs and sentences, with their bos and eos"""
    too_long: Literal["drop", "truncate"] | None = None
    """What becomes of longer ones (default: pairs are dropped, sentences truncated)"""
    split: Literal["random", "order"] = "random"
    """How pairs and sentences are dealt: at random, equal texts together, or by their order in each file"""
    val_fraction: float = 0.1
    """Share of the samples or of the text that goes to val; unused when val or test files are given"""
    test_fraction: float = 0.1
    """Share that goes to test; unused when val or test files are given"""
    seed: int = 0
    """Draws the samples"""
    shard_mb: Annotated[int, Range(1)] = 32
    """Size of a shard, at most, in megabytes"""


@dataclass(frozen=True, eq=False, kw_only=True)
class Plan(plans.Plan):
    """A plan with what the workers read from.

    Attributes:
        mode: "corpus", "pairs" or "sentences".
        inputs: of each split; the numbers in the tasks' items count them.
        tokenizers: by field.
        classes: names by index, empty but for sentences.
        options: the settings.
    """

    mode: str
    inputs: Mapping[str, Sequence[Input]]
    tokenizers: Mapping[str, Tokenizer]
    classes: tuple[str, ...]
    options: Settings


def plan(settings: Settings) -> Plan:
    """Read all files once, deal out the samples and fit the tokenizers.

    Raises:
        UsageError: a setting or a file is not usable; says which and what to do.
    """
    mode = mode_of(settings)
    given = inputs = _inputs(settings, mode)
    classes: tuple[str, ...] = ()
    if mode == "corpus":
        parts = {split: corpus.find_pieces(_files(own)) for split, own in given.items()}
        if len(parts) == 1:
            fractions = settings.val_fraction, settings.test_fraction
            parts = corpus.split_by_position(_files(given["train"]), parts["train"], *fractions)
            inputs = dict.fromkeys(parts, given["train"])
        train = corpus.texts(_files(given["train"]), parts["train"])
        fitted = {"tokens": _fit(settings, settings.tokenizer, train)}
        files = {split: _files(own) for split, own in inputs.items()}
        tasks = corpus.tasks(files, parts, fitted["tokens"], settings.block, settings.shard_mb)
    else:
        found = sentences.find_all(given, mode == "pairs")
        if mode == "sentences":
            classes = sentences.label_rows(found, settings.class_names)
        rows = {split: own.rows for split, own in found.items()}
        if len(found) == 1:
            fractions = settings.val_fraction, settings.test_fraction
            rows = sentences.deal(found["train"], settings.split, *fractions, settings.seed)
            inputs = dict.fromkeys(rows, given["train"])
        fitted = _fit_fields(settings, mode, given["train"], rows["train"])
        sample_bytes = 8 + sum(8 + settings.max_tokens * np.dtype(one.dtype).itemsize for one in fitted.values())
        tasks = plans.shard_tasks(
            rows,
            sample_bytes,
            settings.shard_mb,
            lambda split, part: f"{inputs[split][part[0][0]].file.path} from byte {part[0][1]}",
        )
    sources = plans.describe_sources(_sources(settings, given))
    content = [[source.role, source.sha256] for source in sources]
    decisive = {key: value for key, value in dataclasses.asdict(settings).items() if not key.endswith(PATHS)}
    # Where a tokenizer.json lies decides nothing; what it says is in `known`.
    decisive.update(dict.fromkeys(("tokenizer", "target_tokenizer")))
    known = {name: one.to_json() for name, one in fitted.items()}
    items = [[task.name, _items_digest(task.items)] for task in tasks]
    return Plan(
        digest=plans.plan_digest("text", _REVISION, decisive, content, known, list(classes), items),
        settings=dataclasses.asdict(settings),
        sources=sources,
        fields=_fields(settings, mode, fitted),
        shards=tasks,
        mode=mode,
        inputs=inputs,
        tokenizers=fitted,
        classes=classes,
        options=settings,
    )


def make_shard(plan: Plan, task: plans.ShardTask) -> plans.ShardContent:
    """Read the task's part of the texts and encode it.

    Raises:
        FailedError: a file has changed since the plan was made.
    """
    settings, inputs = plan.options, plan.inputs[task.split]
    if plan.mode == "corpus":
        tokenizer = plan.tokenizers["tokens"]
        arrays, sums = corpus.blocks(_files(inputs), task.items, tokenizer, settings.block, settings.end_of_document)
        return plans.ShardContent(arrays, sums)
    truncate = (settings.too_long or ("drop" if plan.mode == "pairs" else "truncate")) == "truncate"
    fields = _text_fields(plan.mode, plan.tokenizers)
    return sentences.encode_rows(inputs, task.items, fields, settings.max_tokens, truncate, len(plan.classes))


def manifest_entries(plan: Plan, attributes: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Mode, tokenizers, classes, statistics of the train split, and each split's unknown tokens and dropped samples."""
    splits = {split: [attributes[t.name] for t in plan.shards if t.split == split] for split in plan.inputs}

    def total(split: str, name: str) -> int:
        return sum(int(shard[name]) for shard in splits[split])

    statistics: dict[str, Any] = {
        name: {"num_tokens": total("train", f"{name}_count"), "num_unknown": total("train", f"{name}_unknown")}
        for name in plan.tokenizers
    }
    statistics["unknown_share"] = {
        name: {split: total(split, f"{name}_unknown") / max(1, total(split, f"{name}_count")) for split in splits}
        for name in plan.tokenizers
    }
    entries: dict[str, Any] = {"mode": plan.mode, "statistics": statistics}
    if plan.mode != "corpus":
        names = ("num_empty", "num_unlabelled", "num_long", "num_truncated")
        entries["left_out"] = {split: {name: total(split, name) for name in names} for split in splits}
    if plan.classes:
        histogram = np.sum([shard["label_histogram"] for shard in splits["train"]], axis=0)
        statistics["label"] = {"histogram": histogram.tolist()}
        entries["classes"] = [{"index": index, "name": name} for index, name in enumerate(plan.classes)]
    entries["tokenizers"] = {name: one.to_json() for name, one in plan.tokenizers.items()}
    return entries


def summary(plan: Plan, entries: Mapping[str, Any]) -> list[str]:
    """Vocabularies, unknown tokens, what was left out, and the classes with their train samples."""
    lines = []
    statistics = entries["statistics"]
    for name, one in plan.tokenizers.items():
        shares = ", ".join(f"{split} {share:.2%}" for split, share in statistics["unknown_share"][name].items())
        lines.append(
            f"{name}: {one.kind}, {one.num_symbols} symbols and {one.vocab_size - one.num_symbols} specials, "
            f"{statistics[name]['num_tokens']} train tokens; unknown: {shares}"
        )
    for split, counts in entries.get("left_out", {}).items():
        told = [f"{number} {name.removeprefix('num_')}" for name, number in counts.items() if number]
        if told:
            lines.append(f"{split}: {', '.join(told)}")
    if plan.classes:
        lines.append(f"{'index':>5} {'train samples':>14}  class")
        counts = statistics["label"]["histogram"]
        lines += [f"{index:>5} {counts[index]:>14}  {name}" for index, name in enumerate(plan.classes)]
    return lines


def _files(inputs: Sequence[Input]) -> list[TextFile]:
    return [source.file for source in inputs]


def _inputs(settings: Settings, mode: str) -> dict[str, tuple[Input, ...]]:
    """The files of each split that has its own."""
    columns = None
    if settings.text_column is not None and settings.label_column is not None:
        columns = (settings.text_column, settings.label_column)
    reading = Reading(settings.encoding, columns, settings.quotes)
    found: dict[str, tuple[Input, ...]] = {}
    for split, part in (("train", ""), ("val", "val_"), ("test", "test_")):
        own: list[Input] = []
        for side, name in enumerate(OPTIONS[mode]):
            own += open_inputs(getattr(settings, part + name), flag_of(part + name), reading, mode == "sentences", side)
        if own:
            found[split] = tuple(own)
    files = dict.fromkeys(source.file for own in found.values() for source in own)
    wrong = [f"{file.path}: looks like UTF-8, not {settings.encoding}" for file in files if file.looks_like_utf8()]
    warn(f"{text}; leave --encoding out if words come out garbled" for text in wrong)
    return found


def _fit_fields(settings: Settings, mode: str, inputs: Sequence[Input], train: sentences.Rows) -> dict[str, Tokenizer]:
    """The tokenizer of each field, fitted on the train samples where it is not given."""
    if mode == "sentences":
        return {"tokens": _fit(settings, settings.tokenizer, sentences.texts(inputs, train, 0))}
    kinds = (settings.tokenizer, settings.target_tokenizer or settings.tokenizer)
    if settings.shared_vocab:
        if settings.target_tokenizer is not None:
            raise UsageError("shared_vocab and target_tokenizer do not go together; leave one out")
        both = chain(sentences.texts(inputs, train, 0), sentences.texts(inputs, train, 1))
        return dict.fromkeys(("source", "target"), _fit(settings, kinds[0], both))
    return {
        name: _fit(settings, kinds[place], sentences.texts(inputs, train, place))
        for place, name in enumerate(("source", "target"))
    }


def _fit(settings: Settings, kind: str, texts: Iterator[str]) -> Tokenizer:
    return choose(kind, texts, settings.vocab_size, settings.lowercase)


def _text_fields(mode: str, tokenizers: Mapping[str, Tokenizer]) -> list[TextField]:
    if mode == "sentences":
        return [TextField("tokens", "length", tokenizers["tokens"])]
    source = TextField("source", "source_length", tokenizers["source"], eos=True)
    return [source, TextField("target", "target_length", tokenizers["target"], bos=True, eos=True)]


def _fields(settings: Settings, mode: str, tokenizers: Mapping[str, Tokenizer]) -> dict[str, dict[str, Any]]:
    """The manifest's `fields`."""
    width = settings.block + 1 if mode == "corpus" else settings.max_tokens
    fields: dict[str, dict[str, Any]] = {}
    for name, one in tokenizers.items():
        fields[name] = {"dtype": one.dtype, "shape": [width], "fill": one.special_ids["pad"]}
        fields["length" if name == "tokens" else f"{name}_length"] = {"dtype": "int64", "shape": []}
    return {**fields, "label": {"dtype": "int64", "shape": []}} if mode == "sentences" else fields


def _sources(settings: Settings, inputs: Mapping[str, Sequence[Input]]) -> list[tuple[str, Path]]:
    paths = [settings.tokenizer, settings.target_tokenizer]
    roles = [("tokenizer", Path(path)) for path in paths if path is not None and path not in KINDS]
    return roles + [(f"{split} text", source.file.path) for split, own in inputs.items() for source in own]


def _items_digest(items: Any) -> str:
    rows = items.pieces if isinstance(items, corpus.Stretch) else items
    return hashlib.sha256(np.ascontiguousarray(rows).tobytes()).hexdigest()
