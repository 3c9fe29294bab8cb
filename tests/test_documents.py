from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from hpcdl.catalog import input_kinds
from hpcdl.cli import spread
from hpcdl.settings import read_settings
from tests.documents import DOCUMENTS, ROOT, blocks, write_inputs, yaml_and_python_files

WITH_LOCAL = [name for name in DOCUMENTS if any(block.where == "local" for block in blocks(name))]


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_console_block_says_how_it_is_tested(document: str) -> None:
    assert {block.where for block in blocks(document)} <= {"local", "cluster"}
    assert all(block.commands for block in blocks(document))


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_lead_somewhere(document: str) -> None:
    text = (ROOT / document).read_text(encoding="utf-8")
    prose = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    for target in re.findall(r"\]\((?!https?:)([^)#]+)[^)]*\)", prose):
        assert ((ROOT / document).parent / target).exists(), target


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 200


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("document", WITH_LOCAL)
def test_commands_run_as_they_stand(workdir: Path, document: str) -> None:
    write_inputs(workdir)
    for name, body in yaml_and_python_files(document).items():
        (workdir / name).parent.mkdir(parents=True, exist_ok=True)
        (workdir / name).write_text(body)
    for block in blocks(document):
        for command in block.commands if block.where == "local" else []:
            assert command[0] == "hpcdl"
            words = [sys.executable, "-m", "hpcdl", *spread(command[1:])]
            done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=300)
            assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}\n{done.stderr}"


@pytest.mark.parametrize("kind", input_kinds())
def test_the_page_of_each_kind_names_options_that_exist(kind: str) -> None:
    text = (ROOT / "docs" / "inputs" / f"{kind}.md").read_text(encoding="utf-8")
    known = {f"--{name.replace('_', '-')}" for name in read_settings(input_kinds()[kind])}
    known |= {f"--no-{name.replace('_', '-')}" for name in read_settings(input_kinds()[kind])}
    known |= {"--out", "--workers", "--overwrite", "--keep-going", "--nodes", "--ntasks-per-node", "--json"}
    commands = [
        shlex.split(line, comments=True)
        for body in re.findall(r"```sh\n(.*?)```", text, re.DOTALL)
        for line in body.replace("\\\n", " ").splitlines()
        if line.startswith(f"hpcdl preprocess {kind}")
    ]
    assert commands
    for command in commands:
        for word in command:
            if word.startswith("--"):
                assert word.partition("=")[0] in known, f"{word} in {shlex.join(command)}"
