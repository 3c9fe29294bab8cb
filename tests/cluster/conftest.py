"""The `cluster` fixture: a real 4-node Slurm (`scripts/cluster.sh up`), used as an ordinary user.

Jobs of other people may run on the same cluster meanwhile: wait for results, never for an empty queue. Only jobs whose
working directory lies in the test's own folder are cancelled after it, so start them from there (the default).
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pytest

HERE = Path(__file__).parent
CHECKOUT = HERE.parent.parent
STATE = Path(os.environ.get("HPCDL_CLUSTER_DIR", "/srv/hpcdl-cluster"))
UNFINISHED = {"", "PENDING", "RUNNING", "COMPLETING", "CONFIGURING", "SUSPENDED", "REQUEUED", "RESIZING"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark every test below this folder `cluster`."""
    for item in items:
        if item.path.is_relative_to(HERE):
            item.add_marker(pytest.mark.cluster)


class Cluster:
    """The running cluster, seen by its users."""

    def __init__(self, state: Path) -> None:
        self.state = state
        self.scratch = state / "scratch"
        self.checkout = state / "checkout"
        self.account = "hpcdl_test"
        self.reservation = "hpcdl_resv"
        self.users = ("hpcuser1", "hpcuser2")
        self.nodes = ("n1", "n2", "n3", "n4")
        self._workdir: Path | None = None
        self._env: dict[str, str] = {}

    @property
    def workdir(self) -> Path:
        """The test's own folder, empty at its start, on the host and on all nodes; belongs to hpcuser1."""
        assert self._workdir is not None, "workdir exists while a test runs; wider fixtures use make_workdir()"
        return self._workdir

    def make_workdir(self, name: str, user: str = "hpcuser1") -> Path:
        """A new folder in scratch, open to both users; `remove_workdir` cancels what was started in it."""
        path = self.scratch / f"{name[:60]}-{os.getpid()}-{time.monotonic_ns()}"
        path.mkdir()
        shutil.chown(path, user, user)
        path.chmod(0o755)
        return path

    def remove_workdir(self, path: Path) -> None:
        """Cancel the jobs whose working directory is `path` or below it, wait for their end, and delete the folder."""
        deadline = time.monotonic() + 30
        while jobs := [
            job
            for line in self.admin(["squeue", "--noheader", "--format=%A %Z"]).stdout.splitlines()
            for job, _, folder in [line.partition(" ")]
            if Path(folder).is_relative_to(path)
        ]:
            self.admin(["scancel", *jobs], check=False)
            assert time.monotonic() < deadline, f"jobs {jobs} of {path} do not end"
            time.sleep(0.2)
        shutil.rmtree(path, ignore_errors=True)

    def run(
        self,
        cmd: Sequence[str | Path],
        user: str = "hpcuser1",
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
        timeout: float = 60,
        check: bool = True,
    ) -> subprocess.CompletedProcess[str]:
        """Run `cmd` as `user` with the environment of env.sh plus `env`, in the test's folder unless `cwd` is given.

        Raises:
            AssertionError: `check` and the exit status is not 0; shows stdout and stderr.
            subprocess.TimeoutExpired: after `timeout` seconds, with all its children killed.
        """
        words = [str(word) for word in cmd]
        who = {"HOME": str(Path(f"~{user}").expanduser()), "USER": user, "LOGNAME": user}
        full_env = {**self._login_env(), **who, **(env or {})}
        as_user = ["/usr/sbin/runuser", "-u", user, "--", *words] if user != "root" else words
        with subprocess.Popen(
            as_user,
            cwd=cwd or self._workdir or self.scratch,
            env=full_env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        ) as process:
            try:
                stdout, stderr = process.communicate(timeout=timeout)
            except BaseException:
                os.killpg(process.pid, signal.SIGKILL)
                raise
        done = subprocess.CompletedProcess(words, process.returncode, stdout, stderr)
        if check and done.returncode != 0:
            raise AssertionError(f"{user}: {' '.join(words)}\nexit {done.returncode}\n{stdout}\n{stderr}")
        return done

    def admin(
        self, cmd: Sequence[str | Path], timeout: float = 60, check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        """Run `cmd` as root: scontrol, sacctmgr."""
        return self.run(cmd, user="root", cwd=self.scratch, timeout=timeout, check=check)

    def hpcdl(
        self,
        *args: str | Path,
        user: str = "hpcuser1",
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
        timeout: float = 120,
        check: bool = True,
    ) -> subprocess.CompletedProcess[str]:
        """Run `hpcdl ARGS`, as `run` does."""
        return self.run([self.state / "bin" / "hpcdl", *args], user, cwd, env, timeout, check)

    def sbatch(self, script: str, *options: str, user: str = "hpcuser1", cwd: Path | None = None) -> int:
        """Submit bash lines (after the shebang) and return the job id."""
        path = (cwd or self.workdir) / f"job-{time.monotonic_ns()}.sh"
        path.write_text("#!/bin/bash\n" + script + "\n")
        path.chmod(0o755)
        return int(self.run(["sbatch", "--parsable", *options, path], user=user, cwd=cwd).stdout.split(";")[0])

    def sacct(
        self, job_id: int | str, fields: Sequence[str], *, steps: bool = False, duplicates: bool = False
    ) -> list[dict[str, str]]:
        """One dict a record; with `steps` also .batch, .0 …; with `duplicates` also the runs before a requeue.

        Waits for whole records: for up to 5 s a new job is named "allocation" there and has no partition and no QOS.
        """
        deadline = time.monotonic() + 15
        while True:
            records = self._sacct_now(job_id, ["JobID", "Partition", *fields], steps, duplicates)
            if records and all(record[1] for record in records if "." not in record[0]):
                return [dict(zip(fields, record[2:], strict=True)) for record in records]
            assert time.monotonic() < deadline, f"sacct has no whole record of job {job_id} after 15 s: {records}"
            time.sleep(0.2)

    def _sacct_now(
        self, job_id: int | str, fields: Sequence[str], steps: bool = False, duplicates: bool = False
    ) -> list[list[str]]:
        flags = [] if steps else ["--allocations"]
        flags += ["--duplicates"] if duplicates else []
        # Without an explicit start, sacct would hide jobs of before midnight.
        flags += ["--noheader", "--parsable2", "--starttime=2000-01-01", f"--format={','.join(fields)}"]
        out = self.admin(["sacct", *flags, f"--jobs={job_id}"]).stdout
        return [line.split("|") for line in out.splitlines()]

    def wait_job(self, job_id: int | str, timeout: float = 60) -> str:
        """The job's last state in sacct, as one word ("CANCELLED", not "CANCELLED by 0"), once it has left the queue.

        A requeued job is back in the queue, so it is waited for until it really ends.
        """
        deadline = time.monotonic() + timeout
        while True:
            # An unknown job id is an error to squeue: the job ended long ago.
            queued = self.admin(["squeue", "--noheader", f"--jobs={job_id}", "--format=%T"], check=False).stdout.split()
            records = self._sacct_now(job_id, ["State"])
            state = records[0][0].split(" ")[0] if records else ""
            if not queued and state not in UNFINISHED:
                return state
            assert time.monotonic() < deadline, f"job {job_id} is {queued or state} after {timeout:.0f} s"
            time.sleep(0.2)

    def wait_state(self, job_id: int | str, state: str, timeout: float = 60) -> None:
        """Wait until squeue shows the job in `state`, such as RUNNING."""
        deadline = time.monotonic() + timeout
        while (now := self.admin(["squeue", "--noheader", f"--jobs={job_id}", "--format=%T"]).stdout.strip()) != state:
            assert time.monotonic() < deadline, f"job {job_id} is {now or 'gone'}, not {state}, after {timeout:.0f} s"
            time.sleep(0.1)

    def _login_env(self) -> dict[str, str]:
        """What a fresh login shell has after `. env.sh`: nothing of the environment pytest runs in."""
        if not self._env:
            clean = {"PATH": "/usr/local/bin:/usr/bin:/bin", "LANG": "C.UTF-8", "SHELL": "/bin/bash"}
            source = ["bash", "-c", '. "$1" && env -0', "bash", str(self.state / "env.sh")]
            out = subprocess.run(source, env=clean, capture_output=True, text=True, check=True, timeout=20).stdout
            pairs = (line.partition("=") for line in out.split("\0") if line)
            self._env = {name: value for name, _, value in pairs if name not in {"_", "SHLVL", "PWD", "OLDPWD"}}
        return self._env


def _why_unusable() -> str:
    """Empty if the cluster can be used, else one line that says what to do."""
    if os.geteuid() != 0:
        return "the cluster tests need root, to become its users"
    if not (STATE / "env.sh").exists():
        return "no cluster is up: run scripts/cluster.sh up"
    script = CHECKOUT / "scripts" / "cluster.sh"
    status = subprocess.run([str(script), "status"], capture_output=True, text=True, check=False, timeout=60)
    if status.returncode != 0:
        return f"the cluster is not well: run scripts/cluster.sh up\n{status.stdout}{status.stderr}"
    if not (STATE / "checkout").samefile(CHECKOUT):
        return "the cluster serves another checkout: run scripts/cluster.sh up in this one"
    return ""


@pytest.fixture(scope="session")
def cluster() -> Cluster:
    """The cluster; skips the tests when it is not up, or fails them under HPCDL_TEST_CLUSTER=1."""
    if why := _why_unusable():
        if os.environ.get("HPCDL_TEST_CLUSTER") == "1":
            pytest.fail(why)
        pytest.skip(why)
    return Cluster(STATE)


@pytest.fixture(autouse=True)
def _own_workdir(cluster: Cluster, request: pytest.FixtureRequest) -> Iterator[None]:
    name = "".join(letter if letter.isalnum() else "_" for letter in request.node.name)
    path = cluster._workdir = cluster.make_workdir(name)
    yield
    cluster._workdir = None
    cluster.remove_workdir(path)
