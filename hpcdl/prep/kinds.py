"""The kinds of input: the modules of this package that have a `Settings` class. A new kind is one new file."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any, cast

from hpcdl import settings as setting_files
from hpcdl.catalog import input_kinds
from hpcdl.errors import UsageError
from hpcdl.prep.plan import Kind


def load_kind(name: str) -> Kind:
    """The module of an input kind.

    Raises:
        UsageError: no such kind; lists them.
    """
    known = input_kinds()
    if name not in known:
        raise UsageError(f"unknown kind of input {name!r}; known: {', '.join(known)}")
    return cast(Kind, importlib.import_module(f"hpcdl.prep.{name}"))


def build_settings(kind: Kind, name: str, values: Mapping[str, Any]) -> Any:
    """The kind's Settings from plain values, checked against its fields.

    Raises:
        UsageError: an unknown name, a value that does not fit, or a required one missing.
    """
    known = setting_files.read_settings(input_kinds()[name])
    # Lists keep their items: text would be cut at commas, which a file name may hold.
    layer = {
        key: [value] if known.get(key) and known[key].many and isinstance(value, str) else value
        for key, value in values.items()
    }
    resolved = setting_files.resolve(known, [("the request", layer)], f"hpcdl preprocess {name}")
    return setting_files.build(kind.Settings, resolved)
