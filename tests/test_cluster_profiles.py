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
        ("launcher: mpirun 'x\n", r"mine.yaml:1: launcher: No closing quotation"),
        ("launcher: mpirun {tasks:{ranks}}\n", r"mine.yaml:1: launcher: .*ranks"),
        ("launcher: 'mpirun {tasks: >q}'\n", r"mine.yaml:1: launcher: "),
        ("partitions:\n  gpu: {max_time: 48h}\n", r"mine.yaml:2: max_time: time '48h' is not one of"),
        ("partitions:\n  gpu: {max_time: [1]}\n", r"mine.yaml:2: max_time: "),
        ("partitions:\n  gpu:\n    max_nodes: '4'\n", r"mine.yaml:3: max_nodes must be a whole number .*not '4'"),
        ("partitions:\n  gpu: {memory_gb: 1.5}\n", r"mine.yaml:2: memory_gb must be a whole number"),
        ("partitions:\n  gpu: {max_nodes: true}\n", r"mine.yaml:2: max_nodes must be a whole number"),
        ("partitions:\n  gpu: {max_nodes: -1}\n", r"mine.yaml:2: max_nodes must be a whole number"),
        ("prologue: module load x\n", r"mine.yaml:1: prologue must be a list of lines"),
        ("prologue:\n  - echo a: b\n", r"mine.yaml:1: prologue must be a list of lines"),
        ("required: account\n", r"mine.yaml:1: required must be a list of options"),
        ("omit: mem\n", r"mine.yaml:1: omit must be a list of options"),
        ("omit: [[mem]]\n", r"mine.yaml:1: omit must be a list of options"),
        ("environment:\n  A: 1\n  B C: 2\n", r"mine.yaml:3: environment: 'B C' cannot name a variable"),
        ("environment:\n  1A: 1\n", r"mine.yaml:2: environment: '1A' cannot name a variable"),
        ("environment:\n  A: [1]\n", r"mine.yaml:2: environment: A must be text or a number"),
        ("environment:\n  A:\n", r"mine.yaml:2: environment: A must be text or a number"),
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


def test_a_time_needs_no_quotes(workdir: Path) -> None:
    (workdir / "mine.yaml").write_text(
        "partitions:\n  a: {max_time: 48:00:00}\n  b: {max_time: 90}\ndefaults: {time: 12:00:00}\n"
    )
    cluster = load_cluster("mine.yaml")
    assert [limits.max_time for limits in cluster.partitions.values()] == ["48:00:00", "90"]
    assert cluster.defaults == {"time": "12:00:00"}
    with pytest.raises(UsageError, match="allows 01:30:00"):
        cluster.check(Resources(partition="b", time="2:00:00"))


def test_quoted_words_of_the_launcher_stay_whole(workdir: Path) -> None:
    (workdir / "mine.yaml").write_text("""launcher: mpirun -n {tasks} -x 'A=b c' --wrap="n {nodes}"\n""")
    words = load_cluster("mine.yaml").launch_words(Resources(nodes=2, ntasks_per_node=3))
    assert words == ["mpirun", "-n", "6", "-x", "A=b c", "--wrap=n 2"]


def test_values_of_the_environment_are_what_the_file_says(workdir: Path) -> None:
    (workdir / "mine.yaml").write_text("environment: {_A: 1, b2: yes, C: true, D: '', E: a b}\n")
    found = load_cluster("mine.yaml").environment
    assert found == {"_A": "1", "b2": "yes", "C": "true", "D": "", "E": "a b"}
