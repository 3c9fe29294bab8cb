from __future__ import annotations

from pathlib import Path

import pytest

from hpcdl.catalog import names
from hpcdl.cluster import load_cluster
from hpcdl.errors import UsageError
from hpcdl.resources import Resources


@pytest.mark.parametrize("name", ["local", "testcluster", "expanse", "frontera"])
def test_shipped_profiles_load_and_accept_their_own_defaults(workdir: Path, name: str) -> None:
    cluster = load_cluster(name)
    defaults = {"account": "abc", **cluster.defaults}
    cluster.check(Resources(**defaults))
    assert name in names("configs/clusters", ".yaml")


@pytest.mark.parametrize(
    ("resources", "complaint"),
    [
        ({"nodes": 5}, "has 4 nodes, asked for 5; lower -N/--nodes"),
        ({"ntasks_per_node": 3}, "has 2 CPUs a node, asked for 3"),
        ({"ntasks_per_node": 2, "cpus_per_task": 2}, "asked for 4"),
        ({"gpus_per_node": 1}, "0 GPUs a node"),
        ({"mem": "64G"}, "GB of memory"),
        ({"time": "3-00:00:00"}, "allows 1-00:00:00"),
        ({"partition": "norml"}, "Did you mean 'normal'"),
    ],
)
def test_more_than_the_partition_has_is_refused(workdir: Path, resources: dict[str, object], complaint: str) -> None:
    request = Resources(**{"partition": "normal", **resources})  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=complaint):
        load_cluster("testcluster").check(request)


def test_an_account_that_the_site_needs_must_be_given(workdir: Path) -> None:
    with pytest.raises(UsageError, match="needs --account"):
        load_cluster("expanse").check(Resources(partition="gpu"))


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("launchr: srun\n", r"mine.yaml:1: unknown key 'launchr'.*Did you mean 'launcher'"),
        ("scheduler: pbs\n", "must be slurm or local"),
        ("launcher: srun -n {ranks}\n", r"launcher may use .*\{tasks\}"),
        ("partitions:\n  gpu: {max_time: 48:00:00}\n", r"mine.yaml:2: put the time in quotes"),
        ("partitions:\n  gpu: {nodes: 3}\n", "may hold: cpus_per_node"),
        ("omit: [memory]\n", "unknown option 'memory'"),
    ],
)
def test_a_wrong_profile_is_refused_with_its_line(workdir: Path, text: str, complaint: str) -> None:
    folder = workdir / "configs" / "clusters"
    folder.mkdir(parents=True)
    (folder / "mine.yaml").write_text(text)
    with pytest.raises(UsageError, match=complaint):
        load_cluster("mine")
