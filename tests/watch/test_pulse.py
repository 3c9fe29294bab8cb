"""The page that a training and its agent share, across a real child process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable

import pytest

from hpcdl.pulse import LONGEST_LINE, SIZE, VARIABLE, Pulse, Reading, own_pulse

Child = subprocess.Popen[bytes]


def start(pulse: tuple[Pulse, int], code: str) -> Child:
    head = "import os, signal, time\nfrom hpcdl.pulse import own_pulse\npulse = own_pulse()\n"
    environment = {**os.environ, VARIABLE: str(pulse[1])}
    command = [sys.executable, "-c", head + textwrap.dedent(code)]
    return subprocess.Popen(command, env=environment, pass_fds=(pulse[1],))


def until(holds: Callable[[], object], seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)


@pytest.fixture
def pulse() -> tuple[Pulse, int]:
    return Pulse.make()


def test_an_agent_reads_what_its_child_says(pulse: tuple[Pulse, int]) -> None:
    page, _ = pulse
    assert page.read() == Reading(0, 0, 0.0, "starts")
    assert page.failure() is None
    code = """
        pulse.phase("computes")
        for step in range(1, 4):
            pulse.advance(step)
        pulse.advance(3)
        pulse.stop_takes(2.5)
    """
    with start(pulse, code) as child:
        assert child.wait() == 0
    assert page.read() == Reading(4, 3, 2.5, "computes")
    assert page.failure() is None


def test_the_last_words_of_a_killed_child_stay(pulse: tuple[Pulse, int]) -> None:
    page, _ = pulse
    code = """
        pulse.advance(7)
        pulse.phase("saves")
        pulse.fail("peer", "Horovod: gone", "Traceback")
        pulse.advance(8)
        time.sleep(60)
    """
    with start(pulse, code) as child:
        until(lambda: page.read().step == 8)
        child.kill()
        assert child.wait() == -signal.SIGKILL
    assert page.read() == Reading(2, 8, 0.0, "saves")
    assert page.failure() == {"blame": "peer", "line": "Horovod: gone", "text": "Traceback"}


def test_a_child_waits_until_its_failure_is_taken(pulse: tuple[Pulse, int]) -> None:
    page, _ = pulse
    with start(pulse, "pulse.fail('own', 'x', '')\npulse.wait_taken(60)\n") as child:
        until(page.failure)
        time.sleep(0.2)
        assert child.poll() is None
        page.taken()
        assert child.wait(20) == 0


def test_a_child_does_not_wait_for_ever(pulse: tuple[Pulse, int]) -> None:
    with start(pulse, "pulse.fail('own', 'x', '')\npulse.wait_taken(0.2)\n") as child:
        assert child.wait(20) == 0


@pytest.mark.parametrize("letter", ["a", "\n", '"', "é", "中", "😀", "\0"])
@pytest.mark.parametrize("length", [0, 1000, 8000, 30_000, 1_000_000])
def test_any_traceback_fits(letter: str, length: int) -> None:
    page = Pulse()
    page.fail("own", "the reason: " + 10 * letter, length * letter + "the last line")
    said = page.failure()
    assert said is not None
    assert said["line"] == "the reason: " + 10 * letter
    assert said["text"].endswith("the last line")
    assert set(said["text"].removesuffix("the last line")) <= {letter}
    if length <= 1000:
        assert len(said["text"]) == length + len("the last line")
    elif length == 1_000_000:
        assert len(said["text"]) > 3000
    assert page.read() == Reading(0, 0, 0.0, "starts")
    page.taken()
    assert page.failure() == said


@pytest.mark.parametrize("letter", ["a", "é", "😀"])
def test_any_line_fits(letter: str) -> None:
    page = Pulse()
    page.fail("own", SIZE * letter, SIZE * letter)
    said = page.failure()
    assert said is not None
    assert said["line"] == LONGEST_LINE * letter
    assert said["text"]


def test_half_characters_do_not_break_who_tells_them() -> None:
    page = Pulse()
    page.fail("own", os.fsdecode(b"no file \xff"), "\ud83d")
    assert page.failure() == {"blame": "own", "line": "no file \\udcff", "text": "\\ud83d"}


def test_without_an_agent_the_page_is_private(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    own_pulse.cache_clear()
    own_pulse().advance(3)
    assert own_pulse().read().step == 3
    own_pulse.cache_clear()
    assert own_pulse().read().step == 0
