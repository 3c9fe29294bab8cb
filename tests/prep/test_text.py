from __future__ import annotations

import gzip
import os
import pickle
from pathlib import Path

import numpy as np
import pytest

from hpcdl.errors import FailedError, UsageError
from hpcdl.prep import text
from hpcdl.prep.language.tokens import from_json
from hpcdl.prep.text import Settings

ROOT = Path(__file__).resolve().parents[2]
REAL = Path(os.environ.get("HPCDL_SHARED_DATA", ROOT.parent / "shared" / "data")) / "text"

POEM = "".join(f"The {n}th line, of many; it's a line.\n" for n in range(400))


def write(path: Path, body: str | bytes) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    data = body.encode() if isinstance(body, str) else body
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return str(path)


def make(settings: Settings):
    """(plan, arrays by split, manifest entries), through the pickles that workers get."""
    plan = text.plan(settings)
    attributes, arrays = {}, {}
    for task in plan.shards:
        shipped, own = pickle.loads(pickle.dumps((plan, task)))  # noqa: S301
        content = text.make_shard(shipped, own)
        attributes[task.name] = {**content.attributes, "num_dropped": content.num_dropped}
        for name, array in content.fields.items():
            assert array.dtype == plan.fields[name]["dtype"]
            assert list(array.shape[1:]) == plan.fields[name]["shape"]
            arrays.setdefault(task.split, {}).setdefault(name, []).append(array)
    joined = {split: {name: np.concatenate(a) for name, a in own.items()} for split, own in arrays.items()}
    entries = text.manifest_entries(plan, attributes)
    assert text.summary(plan, entries)
    return plan, joined, entries


def stream_of(arrays) -> np.ndarray:
    """The tokens of a split in order, each once: rows overlap by the token that is not predicted."""
    parts = [arrays["tokens"][0, :1]]
    parts += [row[1:length] for row, length in zip(arrays["tokens"], arrays["length"], strict=True)]
    return np.concatenate(parts)


@pytest.mark.parametrize("kind", ["chars", "bytes", "bpe"])
def test_a_corpus_comes_back_whole_from_its_blocks(tmp_path, kind):
    path = write(tmp_path / "poem.txt", POEM + "Ünïcode: 中文 🙂\n")
    size = 300 if kind == "bpe" else None
    _, arrays, entries = make(Settings(corpus=(path,), tokenizer=kind, vocab_size=size, block=33))
    tokenizer = from_json(entries["tokenizers"]["tokens"])
    texts = [tokenizer.decode(stream_of(arrays[split])) for split in ("train", "val", "test")]
    wanted = POEM + "Ünïcode: 中文 🙂\n"
    if kind == "chars":  # what train does not have is unknown
        wanted = "".join(sign if sign in POEM else "\ufffd" for sign in wanted)
    assert "".join(texts) == wanted
    assert len(texts[1]) == pytest.approx(len(POEM) * 0.1, abs=60)
    assert texts[1].startswith("The ")
    share = entries["statistics"]["unknown_share"]["tokens"]
    assert share["train"] == 0
    assert (share["test"] > 0) == (kind == "chars")


def test_every_token_is_predicted_once_over_shards_and_the_last_block_is_padded(tmp_path):
    body = POEM * 100
    path = write(tmp_path / "long.txt", body)
    settings = Settings(corpus=(path,), tokenizer="bytes", block=100, val_fraction=0, test_fraction=0, shard_mb=1)
    plan, arrays, entries = make(settings)
    assert len(plan.shards) > 2
    assert from_json(entries["tokenizers"]["tokens"]).decode(stream_of(arrays["train"])) == body
    assert int((arrays["train"]["length"] - 1).sum()) == len(body) - 1
    short = arrays["train"]["length"] < 101
    assert 1 <= short.sum() <= len(plan.shards)
    for row, length in zip(arrays["train"]["tokens"][short], arrays["train"]["length"][short], strict=True):
        assert (row[length:] == 0).all()
        assert (row[:length] != 0).all()
    for task in plan.shards:
        assert task.num_bytes <= 1.1e6


def test_files_are_documents_and_splits_may_be_given(tmp_path):
    one, two = write(tmp_path / "1.txt", "abc"), write(tmp_path / "2.txt.gz", "cab")
    val = write(tmp_path / "v.txt", "cabx")
    settings = Settings(corpus=(one, two), val_corpus=(val,), tokenizer="chars", end_of_document=True, block=4)
    _, arrays, entries = make(settings)
    eos = entries["tokenizers"]["tokens"]["special_ids"]["eos"]
    assert stream_of(arrays["train"]).tolist() == [4, 5, 6, eos, 6, 4, 5, eos]
    assert stream_of(arrays["val"]).tolist() == [6, 4, 5, 1, eos]
    assert entries["statistics"]["unknown_share"]["tokens"]["val"] == 0.2
    assert set(arrays) == {"train", "val"}


def test_a_vocabulary_is_fitted_on_train_only(tmp_path):
    path = write(tmp_path / "a.txt", "ab\n" * 90 + "xyz\n" * 10)
    _, _, entries = make(Settings(corpus=(path,), tokenizer="chars", val_fraction=0, test_fraction=0.2))
    assert entries["tokenizers"]["tokens"]["symbols"] == "\nab"
    assert entries["tokenizers"]["tokens"]["num_symbols"] == 3


def pairs(folder: Path, number: int = 60, **changes) -> Settings:
    source = write(folder / "a b.en", "".join(f"the house {n} is red\n" for n in range(number)))
    target = write(folder / "a b.de.gz", "".join(f"das Haus {n} ist rot\r\n" for n in range(number)))
    return Settings(**{"source": (source,), "target": (target,), "tokenizer": "words", "max_tokens": 8, **changes})


def test_pairs_stay_together_and_carry_their_marks(tmp_path):
    plan, arrays, entries = make(pairs(tmp_path))
    source, target = (from_json(entries["tokenizers"][name]) for name in ("source", "target"))
    assert {split: len(own["source"]) for split, own in arrays.items()} == {"train": 48, "val": 6, "test": 6}
    ids = source.special_ids
    for own in arrays.values():
        for s, ns, t, nt in zip(*(own[n] for n in ("source", "source_length", "target", "target_length")), strict=True):
            assert s[ns - 1] == ids["eos"]
            assert (t[0], t[nt - 1]) == (ids["bos"], ids["eos"])
            assert (s[ns:] == ids["pad"]).all()
            assert (t[nt:] == ids["pad"]).all()
            assert source.decode(s).split()[2:3] == target.decode(t).split()[2:3]  # the number, where it is known
    assert entries["statistics"]["unknown_share"]["source"]["train"] == 0
    assert plan.fields["source"] == {"dtype": "uint16", "shape": [8], "fill": 0}


def test_long_and_empty_pairs_are_dropped_counted_and_named(tmp_path, capsys):
    source = write(tmp_path / "s", "a b\nc\n\nlong long long long long\n")
    target = write(tmp_path / "t", "a b\n \nd\ne\n")
    base = Settings(
        source=(source,), target=(target,), val_fraction=0, test_fraction=0, tokenizer="words", max_tokens=5
    )
    _, arrays, entries = make(base)
    assert len(arrays["train"]["source"]) == 1
    assert entries["left_out"]["train"] == {"num_empty": 2, "num_unlabelled": 0, "num_long": 1, "num_truncated": 0}
    err = capsys.readouterr().err
    assert f"{target}:2: no text" in err
    assert f"{source}:3: no text" in err
    cut = Settings(**{**vars(base), "too_long": "truncate"})
    _, arrays, entries = make(cut)
    assert len(arrays["train"]["source"]) == 2
    assert entries["left_out"]["train"]["num_truncated"] == 1
    assert arrays["train"]["source_length"].tolist() == [3, 5]
    assert arrays["train"]["source"][1, 4] == 3


def test_pairs_of_unequal_length_are_refused(tmp_path):
    source, target = write(tmp_path / "s", "a\nb\nc\nd\n"), write(tmp_path / "t", "a\nb\n")
    with pytest.raises(UsageError, match=r"s: 4 lines, .*t has 2; lines that translate"):
        text.plan(Settings(source=(source,), target=(target,)))
    with pytest.raises(UsageError, match="2 source files and 1 target files"):
        text.plan(Settings(source=(source, target), target=(target,)))


def test_one_vocabulary_may_be_shared(tmp_path):
    _, _, entries = make(pairs(tmp_path, shared_vocab=True))
    assert entries["tokenizers"]["source"] == entries["tokenizers"]["target"]
    _, _, apart = make(pairs(tmp_path, target_tokenizer="chars"))
    assert apart["tokenizers"]["target"]["kind"] == "chars"


def test_sentences_from_a_file_for_each_class(tmp_path):
    good = write(tmp_path / "good=1.txt", "".join(f"good thing {n}\n" for n in range(40)) + "same\nsame\n")
    bad = write(tmp_path / "bad.txt", "".join(f"bad thing {n}\n" for n in range(40)))
    _, arrays, entries = make(Settings(sentences=(f"up={good}", bad), tokenizer="words", max_tokens=4))
    assert [entry["name"] for entry in entries["classes"]] == ["bad", "up"]
    tokenizer = from_json(entries["tokenizers"]["tokens"])
    for own in arrays.values():
        for row, label in zip(own["tokens"], own["label"], strict=True):
            words = tokenizer.decode(row)
            assert not (words.startswith("good") and label == 0)
            assert not (words.startswith("bad") and label == 1)
    same = [sum(tokenizer.decode(row) == "same" for row in own["tokens"]) for own in arrays.values()]
    assert max(same) in (0, 2)  # equal texts are never parted; in val or test the word is unknown
    assert sum(entries["statistics"]["label"]["histogram"]) == len(arrays["train"]["label"])
    by_order = Settings(sentences=(f"up={good}", bad), tokenizer="words", split="order")
    _, arrays, _ = make(by_order)
    assert {int(label) for label in arrays["test"]["label"]} == {0, 1}


TABLE = 'id,text,label\n1,"Good, really",2\n2,"Two\nlines ""quoted""",10\n\n3,,2\n4,no label,\n5,Fine,10\n'


@pytest.mark.parametrize("ending", ["\n", "\r\n"])
@pytest.mark.parametrize("name", ["t.csv", "t.csv.gz"])
def test_sentences_from_a_table(tmp_path, capsys, ending, name):
    path = write(tmp_path / name, "\ufeff" + TABLE.replace("\n", ending))
    settings = Settings(
        sentences=(path,), text_column="text", label_column="label", tokenizer="bytes", val_fraction=0, test_fraction=0
    )
    _, arrays, entries = make(settings)
    tokenizer = from_json(entries["tokenizers"]["tokens"])
    texts = [tokenizer.decode(row) for row in arrays["train"]["tokens"]]
    assert texts == ["Good, really", 'Two\nlines "quoted"', "Fine"]
    assert arrays["train"]["label"].tolist() == [0, 1, 1]
    assert [entry["name"] for entry in entries["classes"]] == ["2", "10"]
    assert entries["left_out"]["train"]["num_empty"] == 1
    assert entries["left_out"]["train"]["num_unlabelled"] == 1
    err = capsys.readouterr().err
    assert f"{path}:6: no text" in err
    assert f"{path}:7: no label" in err


def test_given_splits_may_not_bring_new_classes_and_shared_texts_are_told(tmp_path, capsys):
    train = write(tmp_path / "train.tsv", 'label\ttext\na\tHe said "hi\nb\tbye\n')
    test = write(tmp_path / "test.tsv", "label\ttext\nb\tbye\n")
    settings = Settings(
        sentences=(train,), test_sentences=(test,), text_column="text", label_column="label", tokenizer="chars"
    )
    _, arrays, _ = make(settings)
    assert arrays["test"]["label"].tolist() == [1]
    assert "1 texts of test are in train, too" in capsys.readouterr().err
    write(tmp_path / "test.tsv", "label\ttext\nc\tbye\n")
    with pytest.raises(UsageError, match=r"test text: the label 'c' is not one of the 2 classes a, b"):
        text.plan(settings)


def test_the_plan_follows_contents_and_settings_and_not_file_names(tmp_path):
    first = text.plan(pairs(tmp_path / "a"))
    assert text.plan(pairs(tmp_path / "b c")).digest == first.digest
    assert text.plan(pairs(tmp_path / "a", seed=1)).digest != first.digest
    assert text.plan(pairs(tmp_path / "a", tokenizer="bpe")).digest != first.digest
    assert text.plan(pairs(tmp_path / "d", number=61)).digest != first.digest
    again = text.plan(pairs(tmp_path / "a", tokenizer="bpe"))
    assert again.tokenizers == text.plan(pairs(tmp_path / "a", tokenizer="bpe")).tokenizers


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, "no text is given; give one of --corpus"),
        ({"corpus": ("x",), "source": ("y",)}, "--corpus and --source do not go together"),
        ({"source": ("x",)}, "--target is missing"),
        ({"val_corpus": ("x",)}, "--corpus is missing; --val-corpus needs it"),
        ({"corpus": ("x",), "max_tokens": 5}, "max_tokens is for --source and --target or --sentences only"),
        ({"sentences": ("x",), "block": 5}, "block is for --corpus only"),
        ({"sentences": ("x",), "text_column": "x"}, "text_column and label_column go together"),
        ({"source": ("x",), "target": ("x",), "max_tokens": 2}, "max_tokens is 2"),
        ({"corpus": ("missing.txt",)}, r"missing\.txt: no such file"),
        ({"corpus": ("HERE",), "encoding": "klingon"}, "encoding 'klingon' is not known"),
        ({"corpus": ("HERE",), "tokenizer": "wrods"}, "tokenizer 'wrods' is not one of chars, bytes, words, bpe"),
        ({"corpus": ("HERE",), "tokenizer": "bytes", "vocab_size": 300}, "bytes are always 256"),
        ({"corpus": ("HERE",), "vocab_size": 100}, "bpe need at least 260"),
        ({"corpus": ("HERE",), "tokenizer": "HERE"}, "not a tokenizer.json"),
        ({"corpus": ("HERE",), "val_fraction": 0.7, "test_fraction": 0.3}, "leave nothing to train"),
        ({"sentences": ("HERE",)}, "1 classes found"),
        ({"sentences": ("HERE",), "text_column": "text", "label_column": "y"}, r"here\.txt:1: no column"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path, changes, message):
    here = write(tmp_path / "here.txt", "one\ntwo\n" * 20)
    given = {
        name: tuple(here if v == "HERE" else v for v in value) if isinstance(value, tuple) else value
        for name, value in changes.items()
    }
    given = {name: here if value == "HERE" else value for name, value in given.items()}
    with pytest.raises(UsageError, match=message):
        text.plan(Settings(**given))


def test_bytes_that_are_no_text_are_told_by_line(tmp_path):
    latin = write(tmp_path / "latin.txt", "fine\nfine\ncaf\xe9 au lait\n".encode("latin-1"))
    with pytest.raises(UsageError, match=r"latin\.txt:3: not utf-8 text \(bytes e9 20 61 75\)"):
        text.plan(Settings(corpus=(latin,)))
    _, arrays, entries = make(Settings(corpus=(latin,), encoding="latin-1", tokenizer="chars", val_fraction=0))
    assert "é" in entries["tokenizers"]["tokens"]["symbols"]
    assert arrays


def test_empty_files_and_files_without_rows_are_refused(tmp_path):
    empty, full = write(tmp_path / "empty.txt", ""), write(tmp_path / "full.txt", "a\nb\n")
    with pytest.raises(UsageError, match=r"empty\.txt: no text in it"):
        text.plan(Settings(corpus=(empty,)))
    with pytest.raises(UsageError, match=r"empty\.txt: the val text holds no samples"):
        text.plan(Settings(sentences=(f"x={full}", f"y={full}"), val_sentences=(f"x={empty}",)))
    columns = {"text_column": "text", "label_column": "label"}
    head = write(tmp_path / "head.csv", "text,label\n")
    with pytest.raises(UsageError, match=r"head\.csv: the train text holds no samples"):
        text.plan(Settings(sentences=(head,), **columns))


def test_wrong_encodings_are_warned_of(tmp_path, capsys):
    path = write(tmp_path / "a.txt", "é\n" * 50)
    text.plan(Settings(corpus=(path,), tokenizer="chars", encoding="latin-1"))
    assert "a.txt: looks like UTF-8, not latin-1" in capsys.readouterr().err


def test_a_file_that_changes_after_the_plan_is_told(tmp_path):
    path = write(tmp_path / "poem.txt", POEM)
    plan = text.plan(Settings(corpus=(path,), tokenizer="bytes"))
    Path(path).write_text(POEM[:500])
    with pytest.raises(FailedError, match=r"poem\.txt: is not what it was when the plan was made"):
        text.make_shard(plan, plan.shards[0])


needs_real = pytest.mark.skipif(not REAL.is_dir(), reason="the shared texts are not on this machine")


@needs_real
def test_tiny_shakespeare_has_65_symbols():
    path = str(REAL / "tinyshakespeare" / "input.txt")
    _, arrays, entries = make(Settings(corpus=(path,), tokenizer="chars", test_fraction=0))
    assert entries["tokenizers"]["tokens"]["num_symbols"] == 65
    assert sum(len(stream_of(own)) for own in arrays.values()) == 1_115_394
    tokenizer = from_json(entries["tokenizers"]["tokens"])
    whole = "".join(tokenizer.decode(stream_of(arrays[split])) for split in ("train", "val"))
    assert whole == Path(path).read_text()


@needs_real
def test_multi30k_has_its_pairs():
    names = {"": "train", "val_": "val", "test_": "test_2016_flickr"}
    files = {
        f"{part}{side}": (str(REAL / "multi30k" / f"{name}.{language}.gz"),)
        for part, name in names.items()
        for side, language in (("source", "en"), ("target", "de"))
    }
    plan = text.plan(Settings(**files, tokenizer="words"))
    counts = {split: sum(len(t.items) for t in plan.shards if t.split == split) for split in ("train", "val", "test")}
    assert counts == {"train": 29_000, "val": 1_014, "test": 1_000}
    content = text.make_shard(plan, next(task for task in plan.shards if task.split == "test"))
    tokenizer = plan.tokenizers["source"]
    assert tokenizer.decode(content.fields["source"][0]).startswith("A man in an orange hat")


@needs_real
def test_rt_polarity_has_two_classes():
    folder = REAL / "rt_polarity"
    files = (f"neg={folder / 'rt-polarity.neg'}", f"pos={folder / 'rt-polarity.pos'}")
    _, arrays, entries = make(Settings(sentences=files, tokenizer="words"))
    assert sum(len(own["label"]) for own in arrays.values()) == 10_662
    assert sum(int(own["label"].sum()) for own in arrays.values()) == 5_331
    assert entries["left_out"]["train"]["num_long"] == 0
