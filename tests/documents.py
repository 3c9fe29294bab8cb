"""The commands of the documents: every `console` block says above it how it is tested, and its `$` lines are run as they stand."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
DOCUMENTS = ["README.md", *sorted(str(path.relative_to(ROOT)) for path in (ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"(?:<!-- runs: (\w+) -->\n)?```console\n(.*?)```", re.DOTALL)

PROJECT = """\
# Makes every training of the documents a matter of seconds; flags in them still win.
settings: {epochs: 1, max_steps: 4, batch_size: 8, log_every: 1}
architectures:
  unet: {width: 2, depth: 1}
"""


@dataclass(frozen=True)
class Block:
    """One console block: where its commands run (local, cluster), and the commands as words."""

    where: str
    commands: list[list[str]]


def blocks(document: str) -> list[Block]:
    """The console blocks of a document, in order."""
    text = (ROOT / document).read_text(encoding="utf-8")
    found = []
    for where, body in BLOCK.findall(text):
        joined = body.replace("\\\n", " ")
        lines = [line[2:] for line in joined.splitlines() if line.startswith("$ ")]
        found.append(Block(where, [shlex.split(line, comments=True) for line in lines]))
    return found


def yaml_and_python_files(document: str) -> dict[str, str]:
    """Files that a document tells its reader to write: a line with `path` in backquotes and a colon, then a code block."""
    text = (ROOT / document).read_text(encoding="utf-8")
    pairs = re.findall(r"`((?:configs|jobs)/[\w/.]+)`[^\n]*:\n\n```(?:yaml|python)\n(.*?)```", text, re.DOTALL)
    return dict(pairs)


def write_inputs(folder: Path) -> None:
    """What the documents' reader has: Landsat bands and NLCD labels, here of an invented small scene."""
    from tests.generators import landcover_files

    files = landcover_files(folder / "made", height=420, width=460, nodata_px=20)
    for band, path in zip("2345", files.images, strict=True):
        path.rename(folder / f"landsat_b{band}.tif")
    files.labels.rename(folder / "nlcd2011.tif")
    (folder / "hpcdl.yaml").write_text(PROJECT)
