"""Which of three things a request for text asks for, a corpus, pairs or sentences, and that its options fit that."""

from __future__ import annotations

import dataclasses
from typing import Any

from hpcdl.errors import UsageError

OPTIONS = {"corpus": ("corpus",), "pairs": ("source", "target"), "sentences": ("sentences",)}
PATHS = ("corpus", "source", "target", "sentences")
# Options that mean something in some modes only; elsewhere they are refused, not ignored.
_ONLY_FOR = {
    "block": ("corpus",),
    "end_of_document": ("corpus",),
    "target_tokenizer": ("pairs",),
    "shared_vocab": ("pairs",),
    "max_tokens": ("pairs", "sentences"),
    "too_long": ("pairs", "sentences"),
    "split": ("pairs", "sentences"),
    "seed": ("pairs", "sentences"),
    "text_column": ("sentences",),
    "label_column": ("sentences",),
    "quotes": ("sentences",),
    "class_names": ("sentences",),
}
_MODES = {"corpus": "--corpus", "pairs": "--source and --target", "sentences": "--sentences"}


def mode_of(settings: Any) -> str:
    """ "corpus", "pairs" or "sentences", as the given options say.

    Raises:
        UsageError: none or several of them, an option that is for another one, or one that another one needs.
    """
    parts = ("", "val_", "test_")
    given = [part + name for part in parts for name in PATHS if getattr(settings, part + name)]
    found = [mode for mode, names in OPTIONS.items() if any(option.endswith(names) for option in given)]
    if len(found) != 1:
        what = " and ".join(map(flag_of, given)) + " do not go together" if found else "no text is given"
        raise UsageError(f"{what}; give one of --corpus (language model), --source and --target (pairs), --sentences")
    mode = found[0]
    for part in parts:
        missing = [part + name for name in OPTIONS[mode] if part + name not in given]
        if missing and (not part or len(missing) < len(OPTIONS[mode])):
            raise UsageError(f"{flag_of(missing[0])} is missing; {flag_of(given[0])} needs it")
    for field in dataclasses.fields(settings):
        if mode not in _ONLY_FOR.get(field.name, (mode,)) and getattr(settings, field.name) != field.default:
            where = " or ".join(_MODES[name] for name in _ONLY_FOR[field.name])
            raise UsageError(f"{field.name} is for {where} only; leave {flag_of(field.name)} out")
    if mode == "pairs" and settings.max_tokens < 3:
        raise UsageError(f"max_tokens is {settings.max_tokens}; bos, eos and a token need at least 3")
    if (settings.text_column is None) != (settings.label_column is None):
        raise UsageError("text_column and label_column go together; give both, or CLASS=FILE for files of lines")
    return mode


def flag_of(name: str) -> str:
    """The option of a setting."""
    return "--" + name.replace("_", "-")
