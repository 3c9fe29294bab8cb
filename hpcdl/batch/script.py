"""A spec's sbatch script, as a pure function of the spec; the only place that writes `#SBATCH` values and quotes for the shell."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import jinja2

from hpcdl import __version__
from hpcdl.catalog import find_template
from hpcdl.resources import time_text
from hpcdl.spec import JobSpec

LOG_PATTERN = "logs/%j.out"
"""Relative to the run folder, where sbatch is called: no path of the user's ever stands in a #SBATCH line."""


def render(spec: JobSpec) -> str:
    """The whole script; slurm/<kind>.sbatch.j2 says what happens, the cluster profile how."""
    template = find_template(f"{spec.kind}.sbatch.j2")
    bundled = find_template("base.sbatch.j2")
    loader = jinja2.ChoiceLoader([jinja2.FileSystemLoader(template.parent), jinja2.FileSystemLoader(bundled.parent)])
    environment = jinja2.Environment(
        loader=loader,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        autoescape=False,
    )
    environment.filters["q"] = shlex.quote
    resources = spec.resources
    python = [spec.python, "-P", "-m"]
    text = environment.get_template(template.name).render(
        version=__version__,
        template=template.name,
        spec=spec,
        cluster=spec.cluster,
        resources=resources,
        directives=directives(spec),
        launch=shlex.join([*spec.cluster.launch_words(resources), *python]),
        python=shlex.join(python),
        bin=Path(spec.python).parent,
    )
    return re.sub(r"\n{3,}", "\n\n", text).rstrip() + "\n"


def directives(spec: JobSpec) -> list[str]:
    """The #SBATCH lines' contents, in sbatch's long form, without what the cluster's sbatch refuses."""
    wanted = spec.resources
    minutes = time_text(wanted.time_min)
    lines: list[tuple[str, str | int | None]] = [
        ("job-name", spec.name),
        ("output", LOG_PATTERN),
        ("open-mode", "append"),
        ("nodes", wanted.nodes),
        ("ntasks", wanted.num_tasks),
        ("ntasks_per_node", wanted.ntasks_per_node),
        ("cpus_per_task", wanted.cpus_per_task),
        ("gpus_per_node", wanted.gpus_per_node or None),
        ("mem", wanted.mem),
        ("time", minutes),
        ("partition", wanted.partition),
        ("account", wanted.account),
        ("qos", wanted.qos),
        ("reservation", wanted.reservation),
        ("constraint", wanted.constraint),
        ("nodelist", wanted.nodelist),
        ("exclude", wanted.exclude),
        ("dependency", wanted.dependency),
        ("mail_type", wanted.mail_type),
        ("mail_user", wanted.mail_user),
        # B: to the batch shell alone, which hands it on to the ranks by way of the run folder.
        ("signal", f"B:USR1@{wanted.lead_s}" if spec.kind == "train" else wanted.signal),
    ]
    omitted = set(spec.cluster.omit)
    texts = [
        f"--{name.replace('_', '-')}={_quote(str(value))}"
        for name, value in lines
        if value is not None and name not in omitted
    ]
    if "requeue" not in omitted:
        texts.append("--requeue" if wanted.requeue else "--no-requeue")
    return texts


def _quote(value: str) -> str:
    """A value as sbatch reads it in a #SBATCH line: its parser knows quotes and backslashes much as a shell does."""
    if "\n" in value:
        raise ValueError("a #SBATCH value cannot hold a line break")
    return shlex.quote(value) if value != LOG_PATTERN else value
