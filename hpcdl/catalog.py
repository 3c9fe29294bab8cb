"""What is on disk: architectures, job files, clusters, legends, runs. The user's own folder first, then the bundled ones."""

from __future__ import annotations

from pathlib import Path

from hpcdl.errors import UsageError, suggestion


def bundled_root() -> Path:
    """The folder that holds the bundled jobs/, slurm/ and configs/: inside the package in a wheel, above it in a checkout."""
    package = Path(__file__).resolve().parent
    inside = package / "bundled"
    return inside if inside.is_dir() else package.parent


def roots() -> list[Path]:
    """Where things are looked up, first hit wins: the working directory, then the bundled folder."""
    here = Path.cwd()
    bundled = bundled_root()
    return [bundled] if here == bundled else [here, bundled]


def names(folder: str, suffix: str) -> dict[str, Path]:
    """Name to file of everything in `folder` (such as "configs/clusters") with that suffix, the user's own first."""
    found: dict[str, Path] = {}
    for root in roots():
        for path in sorted((root / folder).glob(f"*{suffix}")):
            if not path.name.startswith("_"):
                found.setdefault(path.stem, path)
    return dict(sorted(found.items()))


def config_names(kind: str) -> list[str]:
    """The names that find_config knows of a kind."""
    return list(names(f"configs/{kind}", ".yaml"))


def find_config(kind: str, name: str) -> Path:
    """The YAML file of one architecture, cluster, legend, …: a path as given, or a name looked up in configs/`kind`/.

    Raises:
        UsageError: no such name; lists the known ones.
    """
    if name.endswith((".yaml", ".yml")):
        if Path(name).is_file():
            return Path(name).resolve()
        raise UsageError(f"{name}: no such file")
    known = names(f"configs/{kind}", ".yaml")
    if name in known:
        return known[name]
    singular = kind.removesuffix("s")
    raise UsageError(
        f"unknown {singular} {name!r}; known: {', '.join(known)}.{suggestion(name, known)} "
        f"A new one is a file configs/{kind}/{name}.yaml in the working directory"
    )


def find_job(name: str, wanted_by: Path) -> Path:
    """The job file `name` (such as "unet" or "mine/unet.py") that an architecture's YAML asks for.

    Raises:
        UsageError: no such job file.
    """
    beside = wanted_by.parent / name
    if name.endswith(".py") and beside.is_file():
        return beside.resolve()
    known = names("jobs", ".py")
    stem = name.removesuffix(".py")
    if stem in known:
        return known[stem]
    raise UsageError(f"{wanted_by}: no job file {name!r}; known: {', '.join(known)}.{suggestion(stem, known)}")


def find_template(name: str) -> Path:
    """A script template of slurm/, such as "train.sbatch.j2"; the user's own slurm/ folder comes first."""
    for root in roots():
        if (root / "slurm" / name).is_file():
            return root / "slurm" / name
    raise UsageError(f"slurm/{name}: no such template")


def input_kinds() -> dict[str, Path]:
    """Name to file of every kind of input: the modules of hpcdl.prep that have a Settings class, found without importing."""
    files = sorted((Path(__file__).parent / "prep").glob("[a-z]*.py"))
    return {path.stem: path for path in files if "\nclass Settings" in path.read_text(encoding="utf-8")}
