"""`make soak`: a training on the real Slurm is interrupted in random ways, and must end as one that was not.

python -m tests.faults.soak --minutes 10 --seed 7

Needs the cluster of `make cluster`, and root. Prints each fault as it is injected and a table at the end: how often it
was injected, how often the run survived it, and how many steps were lost (done since the checkpoint from which the run
went on). The seed is printed; it fixes the faults and the steps after which they come.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from tests.cluster.conftest import CHECKOUT, STATE, Cluster
from tests.cluster.test_main_job import give
from tests.faults.runs import beats, events, losses, newest_line, until, weights_digest, write_project

PAUSE_S = 0.05
STEP_S = 0.08
"""A paced step on the two cores of a small machine, roughly."""

QUIET_STEPS = (8, 60)
"""Steps between two faults."""

START_S, COME_BACK_S = 120.0, 260.0
"""Slurm lets a job that lost its first node wait for two minutes."""


@dataclass
class Tally:
    """What became of one kind of fault."""

    lost: list[int] = field(default_factory=list)
    injected: int = 0


class Soak:
    """One training and what is done to it."""

    def __init__(self, cluster: Cluster, folder: Path, steps: int, draw: random.Random) -> None:
        self.cluster, self.folder, self.steps, self.draw = cluster, folder, steps, draw
        self.job_id, self.run = self.submit("soaked", "--partition", "preempt", "--set", f"pause_s={PAUSE_S}")

    def submit(self, name: str, *flags: str) -> tuple[str, Path]:
        command = [
            "submit",
            "paced",
            "--data",
            "data",
            "--nodes",
            "4",
            "--set",
            f"max_steps={self.steps}",
            "--name",
            name,
        ]
        flags = ("--set", "epochs=100000", "--max-requeues", "1000", "--set", "checkpoint.keep=3", *flags)
        done = json.loads(self.cluster.hpcdl(*command, *flags, "--json", cwd=self.folder).stdout)
        return str(done["job_id"]), Path(done["run_dir"])

    def state(self) -> str:
        return self.cluster.admin(["squeue", "-h", f"-j{self.job_id}", "-o%t"], check=False).stdout.strip()

    def again(self, how: str) -> None:
        """Submit the run again, once its job has ended."""
        self.cluster.wait_job(self.job_id, 90)
        self.job_id = str(json.loads(self.cluster.hpcdl(how, "soaked", "--json", cwd=self.folder).stdout)["job_id"])

    def kill(self, pattern: str) -> None:
        found = subprocess.run(["pgrep", "-f", pattern], capture_output=True, text=True, check=False).stdout.split()
        if found:
            os.kill(int(self.draw.choice(found)), signal.SIGKILL)

    # The faults; each leaves behind a job that is queued or running.

    def walltime(self) -> None:
        self.cluster.run(["scancel", "--batch", "--signal=USR1", self.job_id])

    def preemption(self) -> None:
        other = self.cluster.sbatch("sleep 2", "--nodes=4", "--exclusive", "--time=2")
        self.cluster.wait_job(other, 120)

    def cancellation(self) -> None:
        self.cluster.hpcdl("cancel", "soaked", cwd=self.folder)
        self.again("resume")

    def killed_rank(self) -> None:
        self.kill(f"hpcdl.train {self.run}")
        self.again("retry")

    def killed_agent(self) -> None:
        self.kill(f"hpcdl.watch.rank {self.run}")
        self.again("retry")

    def killed_batch_process(self) -> None:
        self.kill(f"hpcdl.watch {self.run}")
        self.again("retry")

    def lost_node(self) -> None:
        node, script = self.draw.choice(self.cluster.nodes), CHECKOUT / "scripts" / "cluster.sh"
        subprocess.run([script, "kill-node", node], check=True, stdout=subprocess.DEVNULL, timeout=60)
        until(lambda: self.state() != "R", 90)
        subprocess.run([script, "start-node", node], check=True, stdout=subprocess.DEVNULL, timeout=60)
        self.cluster.admin(["scontrol", "update", f"JobId={self.job_id}", "StartTime=now"], check=False)

    def flipped_byte(self) -> None:
        self._damage(lambda path: _flip(path, self.draw))

    def truncated_file(self) -> None:
        self._damage(lambda path: os.truncate(path, path.stat().st_size // 2))

    def emptied_folder(self) -> None:
        self._damage(lambda path: [file.unlink() for file in path.parent.iterdir()])

    def missing_LAST(self) -> None:
        self.cluster.hpcdl("cancel", "soaked", cwd=self.folder)
        self.cluster.wait_job(self.job_id, 90)
        (self.run / "checkpoints" / "LAST").unlink(missing_ok=True)
        self.again("resume")

    def _damage(self, how: Callable[[Path], object]) -> None:
        """Cancel, damage the newest checkpoint, resume."""
        self.cluster.hpcdl("cancel", "soaked", cwd=self.folder)
        self.cluster.wait_job(self.job_id, 90)
        newest = max((self.run / "checkpoints").glob("step-*"))
        how(newest / "state.pt")
        self.again("resume")


FAULTS = (
    "walltime", "preemption", "cancellation", "killed_rank", "killed_agent", "killed_batch_process", "lost_node",
    "flipped_byte", "truncated_file", "emptied_folder", "missing_LAST",
)  # fmt: skip


def _flip(path: Path, draw: random.Random) -> None:
    place = draw.randrange(path.stat().st_size)
    with path.open("r+b") as file:
        file.seek(place)
        byte = file.read(1)[0]
        file.seek(place)
        file.write(bytes([byte ^ 0x10]))


def soak(cluster: Cluster, folder: Path, minutes: float, seed: int) -> bool:
    """Injure a training for so long, let it end, compare; whether it ended with the same weights and metrics."""
    draw = random.Random(seed)
    steps = max(200, round(minutes * 60 / STEP_S * 0.3))
    print(f"seed {seed}: {steps} steps, faults for {minutes:g} minutes, run folder {folder}/runs/soaked", flush=True)
    subject, tallies = Soak(cluster, folder, steps, draw), {name: Tally() for name in FAULTS}
    until_s, order = time.monotonic() + 60 * minutes, []
    while time.monotonic() < until_s:
        order = order or draw.sample(FAULTS, len(FAULTS))  # each kind in turn, in random order
        wanted = newest_line(subject.run) + draw.randint(*QUIET_STEPS)
        if wanted >= steps - 5:
            break
        until(lambda: newest_line(subject.run) >= wanted, COME_BACK_S)  # noqa: B023 - waited for at once
        name = order.pop()
        started, began = len(events(subject.run, "started")), len(events(subject.run, "began"))
        tallies[name].injected += 1
        getattr(subject, name)()
        until(lambda: len(events(subject.run, "started")) > started, COME_BACK_S)  # noqa: B023
        back = events(subject.run, "started")[-1]["step"]
        reached = max(
            wanted, *(_reached(subject, event["attempt"]) for event in events(subject.run, "began")[began - 1 : -1])
        )
        tallies[name].lost.append(max(0, reached - back))
        print(f"{time.strftime('%H:%M:%S')} {name}: at step {reached}, went on from {back}", flush=True)
    cluster.wait_job(subject.job_id, 60 + 4 * STEP_S * steps)
    whole_id, whole = subject.submit("whole")
    cluster.wait_job(whole_id, 60 + 4 * STEP_S * steps)
    same_weights = weights_digest(subject.run) == weights_digest(whole)
    same_lines = losses(subject.run) == losses(whole)
    print("\n| fault | injected | survived | steps lost, median | most |\n|---|---|---|---|---|")
    for name, tally in tallies.items():
        told = f"{statistics.median(tally.lost):g} | {max(tally.lost)}" if tally.lost else "- | -"
        print(f"| {name.replace('_', ' ')} | {tally.injected} | {len(tally.lost)} | {told} |")
    print(f"\nweights {'the same, bit for bit' if same_weights else 'DIFFER'}: {weights_digest(subject.run)}")
    print(f"lines of metrics {'the same' if same_lines else 'DIFFER'}: {len(losses(whole))}", flush=True)
    return same_weights and same_lines


def _reached(subject: Soak, attempt: str) -> int:
    """The furthest step that an attempt, which has ended, tells of."""
    said = [event["step"] for event in events(subject.run, "ended") if event["attempt"] == attempt]
    return max([0, *said, *(beat["step"] for beat in beats(subject.run, attempt).values())])


def main() -> int:
    """Parse, soak; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    arguments = parser.parse_args()
    if os.geteuid() != 0 or not (STATE / "env.sh").exists():
        print("soak: needs root and the cluster of `make cluster`", file=sys.stderr)
        return 2
    cluster = Cluster(STATE)
    folder = cluster._workdir = cluster.make_workdir("soak")
    write_project(folder)
    give(cluster, folder)
    good = soak(cluster, folder, arguments.minutes, arguments.seed)
    if good:
        cluster.remove_workdir(folder)
        shutil.rmtree(folder, ignore_errors=True)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
