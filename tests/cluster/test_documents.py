"""The documents' commands for a cluster, run on one, as an ordinary user."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cluster.conftest import Cluster
from tests.cluster.test_main_job import give
from tests.documents import DOCUMENTS, blocks, write_inputs

WITH_CLUSTER = [name for name in DOCUMENTS if any(block.where == "cluster" for block in blocks(name))]


@pytest.mark.timeout(600)
@pytest.mark.parametrize("document", WITH_CLUSTER)
def test_commands_run_as_they_stand(cluster: Cluster, document: str) -> None:
    write_inputs(cluster.workdir)
    give(cluster, cluster.workdir)
    for block in blocks(document):
        for command in block.commands if block.where == "cluster" else []:
            wait_for_jobs(cluster)
            cluster.run([cluster.state / "bin" / "hpcdl", *command[1:]], timeout=300)


def wait_for_jobs(cluster: Cluster) -> None:
    """What a reader does between two commands that build on each other: wait for the job of the first."""
    for path in sorted(Path(cluster.workdir / "runs").glob("*/attempts.jsonl")):
        job_id = json.loads(path.read_text().splitlines()[0])["job_id"]
        assert cluster.wait_job(job_id, timeout=200) == "COMPLETED", path.parent.name
