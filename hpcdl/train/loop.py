"""The training loop: one for every architecture. When to step, log, save and validate; what that means is told elsewhere."""

from __future__ import annotations

import contextlib
import json
import math
import time
from collections.abc import Callable
from typing import Any

import torch

from hpcdl.pulse import own_pulse
from hpcdl.rundir import RunDir
from hpcdl.shards.loader import Loader
from hpcdl.shards.manifest import Manifest
from hpcdl.shards.order import SampleOrder
from hpcdl.shards.reader import ShardReader
from hpcdl.train import checkpoint, randomness
from hpcdl.train.checkpoint import Retention
from hpcdl.train.communicator import Communicator, sum_plain
from hpcdl.train.guards import AgreedError
from hpcdl.train.interrupt import StopFlag
from hpcdl.train.job import JobBase, Sums
from hpcdl.train.metrics import MetricsWriter
from hpcdl.train.saver import Saver
from hpcdl.train.schedule import rate
from hpcdl.train.settings import TrainSettings
from hpcdl.train.state import State, Window
from hpcdl.train.step import Stepper, Wishes

PERMIT_S = 30.0
"""Between two looks at the run's lock, besides those at each checkpoint."""


class Trainer:
    """One rank of a training run.

    Args:
        permit: called before each commit of a checkpoint; raises when another job has taken the run over.
        stop_at: step after which the training stops as if it had been asked to; 0 is never.
        began: time.time() when this process began, for the time to the first step.
    """

    def __init__(
        self,
        run: RunDir,
        job: JobBase,
        manifest: Manifest,
        settings: TrainSettings,
        comm: Communicator,
        needs: tuple[str, ...],
        permit: Callable[[], None] = lambda: None,
        stop_at: int = 0,
        began: float = 0.0,
    ) -> None:
        self.run, self.job, self.manifest, self.settings, self.comm = run, job, manifest, settings, comm
        self.stop_at, self.began = stop_at, began or time.time()
        self.flag, self.pulse = StopFlag(), own_pulse()
        device = (
            torch.device("cuda", comm.local_rank % torch.cuda.device_count())
            if torch.cuda.is_available()
            else torch.device("cpu")
        )
        # The same initial weights on every rank and for any number of ranks; afterwards each rank draws its own dropout.
        randomness.seed_all(settings.seed)
        self.state = State(job.networks(), settings, comm, device)
        self.state.seed_rank()
        self.stepper = Stepper(job, self.state, settings, comm, self._wishes)
        self.peak = settings.optimizer.lr * (comm.size if settings.scale_lr else 1)
        self.loaders = {
            split: Loader(reader, self._order(manifest, split, len(reader)), comm.rank, comm.size)
            for split in ("train", "val")
            if len(reader := ShardReader(manifest, split, needs, threads=max(1, min(4, torch.get_num_threads() // 2))))
        }
        self.batches_per_epoch = self.loaders["train"].order.num_batches
        self.num_steps = settings.epochs * self.batches_per_epoch
        if settings.max_steps:
            self.num_steps = min(self.num_steps, settings.max_steps)
        goes_on = settings.checkpoint.on_error == "go-on"
        self.writer = MetricsWriter(run, active=comm.rank == 0, goes_on=goes_on)
        retention = Retention(settings.checkpoint.keep, settings.checkpoint.keep_every)
        self.saver = Saver(run.checkpoints, retention, permit, settings.checkpoint.asynchronous)
        self.permitted_when = time.monotonic()
        self.saved_when, self.longest_step_s = time.monotonic(), 0.0
        self.agreed = Wishes()

    def _order(self, manifest: Manifest, split: str, num_samples: int) -> SampleOrder:
        shuffled = split == "train"
        return SampleOrder(manifest.digest, num_samples, self.settings.batch_size, self.settings.seed, shuffled)

    @property
    def complete(self) -> bool:
        """Whether no step is left to train."""
        return self.state.at.step >= self.num_steps or self.state.best.exhausted(self.settings.best)

    def train(self) -> bool:
        """Train to the end; False when a signal asked to stop before it. The state is saved either way.

        Raises:
            FailedError: on all ranks alike: a step was not finite, or a checkpoint could not be written.
        """
        if self.state.pending_validation:
            self._validate(saved=True)
        while not self.complete and not self.agreed.stop:
            self._epoch()
        self._finish_saving()
        done, at = self.complete and not self.state.pending_validation, self.state.at
        if self.writer.active:
            early = f", no better {self.settings.best.metric} since step {self.state.best.step}"
            why = early if at.step < self.num_steps else ""
            print(f"done: {at.step} steps{why}" if done else f"stopped at step {at.step}", flush=True)
        self.writer.close()
        self.pulse.phase("ends")
        return done

    def _epoch(self) -> None:
        at, settings = self.state.at, self.settings
        batches = self.loaders["train"].batches(at.epoch, at.batch)
        with contextlib.closing(batches):
            while not self.complete and not self.agreed.stop:
                with self.stepper.timed("data"):
                    batch = next(batches, None)
                if batch is None:
                    break
                began = time.perf_counter()
                self.agreed = self.stepper.step(batch, self.peak * rate(at.step, self.num_steps, settings.schedule))
                at.step, at.batch = at.step + 1, at.batch + 1
                if at.batch == self.batches_per_epoch:
                    at.epoch, at.batch = at.epoch + 1, 0
                self.pulse.advance(at.step)
                self._note_step(time.perf_counter() - began)
                if at.step % settings.log_every == 0 or at.step == self.num_steps:
                    self._log(self.state.window)
                    self.state.window = Window()
                self._between_steps()

    def _wishes(self) -> Wishes:
        """What this rank wants to have agreed on in the step that is under way."""
        stop = self.flag.asked or self.state.at.step + 1 == self.stop_at
        if self.comm.rank != 0:  # one clock decides, and one process writes
            return Wishes(stop)
        minutes = self.settings.checkpoint.minutes
        due = minutes > 0 and time.monotonic() - self.saved_when > 60 * minutes
        return Wishes(stop, due, bool(self.saver.error))

    def _between_steps(self) -> None:
        """Save and validate where it is due; all ranks decide alike."""
        at, due = self.state.at, self.settings.checkpoint
        ended, last = at.batch == 0, at.step >= self.num_steps
        if self.agreed.save_failed:
            self._saving_failed()
        validate = "val" in self.loaders and (last or (ended and _due(at.epoch, self.settings.val_every)))
        save = self.agreed.stop or self.agreed.save or last or _due(at.step, due.steps)
        save = save or (ended and _due(at.epoch, due.epochs))
        self.state.pending_validation = validate
        # Saved first: a validation may take long, and a node may fail in it.
        if save:
            self._save()
        if validate and not self.agreed.stop:
            self._validate(saved=save)

    def _note_step(self, seconds: float) -> None:
        self.longest_step_s = max(self.longest_step_s, seconds)
        if self.began:
            self.writer.write("startup", self.state.at.step, {"seconds": time.time() - self.began})
            self.began = 0.0
        self._note_saved()

    def _note_saved(self) -> None:
        while self.saver.saved:
            saved = self.saver.saved.pop(0)
            line = {"stall_s": saved.stall_s, "write_s": saved.write_s, "num_bytes": saved.num_bytes}
            self.writer.write("checkpoint", saved.step, line)
            self.pulse.stop_takes(2 * self.longest_step_s + saved.stall_s + saved.write_s)

    def _log(self, window: Window) -> None:
        if self.comm.rank == 0 and time.monotonic() - self.permitted_when > PERMIT_S:
            self.saver.permit()  # an attempt that was taken over must not write on beside the new one
            self.permitted_when = time.monotonic()
        # Only what a step takes: validation and checkpoints between two lines are not the network's speed.
        elapsed = sum(window.seconds.values())
        names = sorted(window.means)
        own = [value for name in names for value in window.means[name].tolist()]
        values = sum_plain(self.comm, [*own, *window.seconds.values(), elapsed], "metrics")
        state = self.state
        line: dict[str, Any] = {
            "epoch": round(state.at.step / self.batches_per_epoch, 4),
            "num_steps": self.num_steps,
        }
        for place, name in enumerate(names):
            total, weight = values[2 * place : 2 * place + 2]
            line[name] = total / weight if weight else math.nan
        line["lr"] = next(iter(state.optimizers.values())).param_groups[0]["lr"]
        line["samples_per_s"] = window.samples / elapsed
        for place, name in enumerate(window.seconds):
            line[f"{name}_share"] = values[2 * len(names) + place] / values[-1]
        if state.num_skipped:
            line["num_skipped"] = state.num_skipped
        if state.loss_scale.active:
            line["loss_scale"] = state.loss_scale.value
        self.writer.write("train", state.at.step, line)

    def _validate(self, saved: bool) -> None:
        """Validate, and keep the checkpoint of the best; when a stop is asked for meanwhile, it stays pending.

        Args:
            saved: whether there is a checkpoint of this step already.
        """
        self.pulse.phase("validates")
        began, before = time.perf_counter(), randomness.state()
        metrics, state, wanted = self._validation_metrics(), self.state, self.settings.best
        if metrics is None:
            randomness.restore(before)  # the validation will be done again, from its beginning
            if not saved:
                self._save()
            return
        state.pending_validation = False
        line = {"epoch": state.at.step / self.batches_per_epoch, **metrics, "seconds": time.perf_counter() - began}
        self.writer.write("val", state.at.step, line)
        better = state.best.see(metrics, state.at.step, wanted)
        if better and saved:
            if self.comm.rank == 0:
                self.saver.mark_best(state.at.step)
        elif better or (state.best.exhausted(wanted) and not saved):
            self._save(best=better)

    @torch.no_grad()
    def _validation_metrics(self) -> dict[str, Any] | None:
        """None when a stop was asked for before the end."""
        networks = self.state.averaged or self.state.networks
        for network in networks.values():
            network.eval()
        sums: Sums = {}
        with self.state.mean_statistics(networks), contextlib.closing(self.loaders["val"].batches(0)) as batches:
            for batch in batches:
                with self.stepper.autocast:
                    part = self.job.validation_step(networks, batch.to(self.state.device))
                sums = {name: sums[name] + value if name in sums else value for name, value in part.items()}
                self.pulse.advance(self.state.at.step)
                # A stop in a long validation is agreed on here: the next step may come too late.
                if sum_plain(self.comm, [self.flag.asked], "val.stop")[0] > 0:
                    self.agreed.stop = True
                    return None
        mine = json.dumps([[name, list(value.shape)] for name, value in sorted(sums.items())])
        for rank, other in enumerate(self.comm.gather(mine.encode())):
            if other.decode() != mine:
                raise AgreedError(f"validation sums differ between ranks: {mine} here, {other.decode()} on rank {rank}")
        sums = {name: self.comm.sum(value.double(), f"val.{name}") for name, value in sorted(sums.items())}
        return self.job.summarise(sums)

    def _save(self, best: bool = False) -> None:
        began = time.perf_counter()
        self.pulse.phase("saves")
        self.writer.flush()
        ranks = self.comm.gather(checkpoint.to_bytes(self.state.own()))
        shared = {**self.state.shared(), "data_digest": self.manifest.digest}
        if self.comm.rank == 0:
            self.saver.save(self.state.at.step, shared, ranks, best, began)
        self.saved_when = time.monotonic()
        self.pulse.advance(self.state.at.step)

    def _finish_saving(self) -> None:
        """Wait for the last checkpoint; all ranks learn whether it was written."""
        if self._last_failed():
            if self.settings.checkpoint.on_error == "go-on":
                self._save()  # there may be room by now; without its last checkpoint a run is not done
            if self.settings.checkpoint.on_error == "stop" or self._last_failed():
                self._saving_failed(last=True)

    def _last_failed(self) -> bool:
        self.pulse.phase("saves")
        self.saver.wait()
        self._note_saved()
        return sum_plain(self.comm, [bool(self.saver.error)], "saved")[0] > 0

    def _saving_failed(self, last: bool = False) -> None:
        """Raises AgreedError when a checkpoint could not be written, unless another one follows and the settings allow it."""
        reason, self.saver.error = self.saver.error, ""
        if last or self.settings.checkpoint.on_error == "stop":
            raise AgreedError(
                f"{reason}. The former checkpoints are intact: make room, then `hpcdl resume {self.run.name}`"
            )
        if self.writer.active:
            print(f"warning: {reason}; training goes on", flush=True)

    def resume(self) -> int:
        """Go on from the newest checkpoint whose digests hold; gives its step, 0 when there is none."""
        step = -1.0
        if self.comm.rank == 0:
            checkpoint.clear_unfinished(self.run.checkpoints)
            found = checkpoint.newest_good(self.run.checkpoints, lambda line: print(line, flush=True), set_aside=True)
            step = -1.0 if found is None else checkpoint.step_of(found)
        step = sum_plain(self.comm, [step if self.comm.rank == 0 else 0.0], "resume")[0]
        if step < 0:
            if any(self.run.checkpoints.glob("damaged-*")) and self.comm.rank == 0:
                print("no good checkpoint is left: begins at step 0", flush=True)
            self.writer.rewind(0, validated=False)
            return 0
        found = self.run.checkpoints / checkpoint.name_of(int(step))
        shared, state = checkpoint.load(found), self.state
        state.restore(shared)
        if shared["num_ranks"] == self.comm.size:
            state.restore_own(checkpoint.load_rank(found, self.comm.rank))
        if shared["data_digest"] != self.manifest.digest:
            # Another data set has another order: what is left of this epoch would mean nothing.
            state.at.batch = 0
        state.pending_validation = state.pending_validation and "val" in self.loaders
        self.writer.rewind(state.at.step, validated=not state.pending_validation)
        if self.writer.active:
            print(f"resumed from {found.name}", flush=True)
        return state.at.step


def _due(count: int, every: int) -> bool:
    return every > 0 and count % every == 0
