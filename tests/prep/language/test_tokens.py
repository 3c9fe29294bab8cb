from __future__ import annotations

import pickle

import numpy as np
import pytest
from tokenizers import Tokenizer as Engine
from tokenizers import models, pre_tokenizers

from hpcdl.errors import UsageError
from hpcdl.prep.language.tokens import KINDS, choose, fit, from_json, read_tokenizer

TEXTS = ["The house isn't red.\n", "The mouse, <unk> or <pad>, is नमस्ते!\n", "the house house"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_tokenizer_comes_back_from_its_json_and_its_pickle(kind):
    first = fit(kind, TEXTS, None, lowercase=True)
    for again in (from_json(first.to_json()), pickle.loads(pickle.dumps(first)), fit(kind, TEXTS, None, True)):  # noqa: S301
        assert again == first
        for text in (*TEXTS, "", "unseen ☃ signs"):
            np.testing.assert_array_equal(again.encode(text), first.encode(text))
    ids = first.encode(TEXTS[0])
    assert ids.dtype == np.uint16
    assert ids.max() < first.vocab_size
    # No text may turn into a mark of the end, whatever it says.
    assert not np.isin([first.special_ids[name] for name in ("pad", "bos", "eos")], first.encode(TEXTS[1])).any()
    decoded = first.decode([0, 2, *ids, 3])
    wanted = "the house isn't red . \n" if kind == "words" else "the house isn't red.\n"
    assert decoded == wanted


def test_words_are_words():
    tokenizer = fit("words", TEXTS, None, lowercase=False)
    assert tokenizer.decode(tokenizer.encode("The mouse, नमस्ते <unk> Snark")) == "The mouse , नमस्ते <unk> <unk>"
    assert tokenizer.count_unknown(tokenizer.encode("The Snark <unk>")) == 2


def test_the_most_frequent_are_kept():
    assert fit("chars", ["aaabbc"], 6, False).symbols == "ab"
    words = fit("words", TEXTS, 6, False)
    assert words.vocab_size == 6
    assert words.count_unknown(words.encode("house")) == 0
    assert words.num_symbols == 2


def test_many_ids_need_more_than_16_bits():
    symbols = "".join(chr(number) for number in range(0x20000, 0x20000 + 65_533))
    tokenizer = fit("chars", [symbols], None, False)
    assert tokenizer.dtype == "int32"
    assert tokenizer.encode(symbols[-1]).tolist() == [65_536]


def foreign(path, **vocabulary: int):
    engine = Engine(models.WordLevel(vocabulary, unk_token="[UNK]"))
    engine.pre_tokenizer = pre_tokenizers.Whitespace()
    engine.enable_truncation(1)
    engine.save(str(path))
    return path


def test_a_tokenizer_made_elsewhere_keeps_its_ids_and_gets_what_it_lacks(tmp_path):
    path = foreign(tmp_path / "tokenizer.json", **{"[UNK]": 0, "[PAD]": 7, "one": 3, "two": 4})
    tokenizer = choose(str(path), [], None, False)
    assert tokenizer.kind == "file"
    assert tokenizer.encode("one two three").tolist() == [3, 4, 0]
    assert (tokenizer.special_ids["unk"], tokenizer.special_ids["pad"]) == (0, 7)
    assert tokenizer.special_ids["bos"] != tokenizer.special_ids["eos"]
    assert tokenizer.vocab_size > max(tokenizer.special_ids.values())
    assert from_json(tokenizer.to_json()) == tokenizer
    with pytest.raises(UsageError, match="vocab_size is for tokenizers that are fitted here"):
        choose(str(path), [], 100, False)


def test_what_is_no_tokenizer_is_refused(tmp_path):
    path = tmp_path / "x.json"
    path.write_text("{}")
    with pytest.raises(UsageError, match=r"x\.json: not a tokenizer\.json"):
        read_tokenizer(path)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(UsageError, match=r"x\.json: not readable"):
        read_tokenizer(path)
    with pytest.raises(UsageError, match="chars need at least 5"):
        fit("chars", ["a"], 4, False)
