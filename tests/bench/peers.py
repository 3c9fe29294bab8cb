"""One loader over one data set, timed in a process of its own: `python -m tests.bench.peers LOADER CASE FOLDER WRITE|READ`.

Peers are installed in an environment of their own (.venv-peers, by `make bench-peers`): they would change this one's
packages. Each writes the same samples in its own format with its authors' settings for speed, and reads shuffled epochs of
batches of torch tensors with labels in one process: what `for batch in loader` gives. READ prints `rate SAMPLES_PER_SECOND`
for each epoch.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

EPOCHS = 4


@dataclass(frozen=True)
class Case:
    """Samples of one kind: field name to (dtype, shape of one sample), their number, and the batch size."""

    fields: dict[str, tuple[str, tuple[int, ...]]]
    count: int
    batch: int
    per_shard: int


CASES = {
    "chips": Case({"image": ("uint16", (4, 256, 256)), "label": ("uint8", (256, 256))}, 6800, 16, 54),
    "digits": Case({"image": ("uint8", (1, 28, 28)), "label": ("int64", ())}, 60_000, 256, 40_000),
    "tokens": Case({"tokens": ("uint16", (512,)), "label": ("int64", ())}, 200_000, 256, 30_000),
}


def samples(case: Case) -> Iterator[dict[str, np.ndarray]]:
    """All samples, made up; the first bytes hold the sample's number, so that what is read can be checked."""
    random = np.random.default_rng(0)
    for number in range(case.count):
        sample = {}
        for name, (dtype, shape) in case.fields.items():
            if shape:
                value = random.integers(0, 200, shape, dtype=dtype)
                value.ravel()[:4] = [number >> shift & 127 for shift in (0, 7, 14, 21)]
            else:
                value = np.array(number % 10, dtype)
            sample[name] = value
        yield sample


def number_of(batch_field: torch.Tensor) -> torch.Tensor:
    """The numbers of a batch's samples, from what `samples` hid in them."""
    head = batch_field.reshape(len(batch_field), -1)[:, :4].long()
    return (head << torch.tensor([0, 7, 14, 21])).sum(1)


# --- hpcdl -----------------------------------------------------------------------------------------------------------


def write_hpcdl(case: Case, folder: Path) -> None:
    from hpcdl.shards.manifest import build_manifest, file_digest, save_manifest
    from hpcdl.shards.writer import write_shard_file

    folder.mkdir(parents=True)
    source, shards = samples(case), []
    for start in range(0, case.count, case.per_shard):
        some = [next(source) for _ in range(min(case.per_shard, case.count - start))]
        path = folder / f"train-{len(shards):05d}.h5"
        write_shard_file(path, {name: np.stack([s[name] for s in some]) for name in case.fields}, {"plan": "bench"})
        shards.append(
            {"file": path.name, "num_samples": len(some), "num_bytes": path.stat().st_size, "sha256": file_digest(path)}
        )
    fields = {name: {"dtype": dtype, "shape": list(shape)} for name, (dtype, shape) in case.fields.items()}
    splits = {"train": {"num_samples": case.count, "shards": shards}}
    save_manifest(folder, build_manifest("images", fields, splits, {}))


def read_hpcdl(case: Case, folder: Path) -> Callable[[int], Iterator[Any]]:
    from hpcdl.shards.loader import Loader
    from hpcdl.shards.manifest import load_manifest
    from hpcdl.shards.order import SampleOrder
    from hpcdl.shards.reader import ShardReader

    manifest = load_manifest(folder)
    reader = ShardReader(manifest, "train", tuple(case.fields), threads=len(os.sched_getaffinity(0)))
    loader = Loader(reader, SampleOrder(manifest.digest, len(reader), case.batch, seed=0), 0, 1)
    return lambda epoch: (batch.fields for batch in loader.batches(epoch))


# --- plain h5py behind a DataLoader ----------------------------------------------------------------------------------


class H5Dataset(torch.utils.data.Dataset):
    """What most tutorials do: one file, opened at first use, one sample a call."""

    def __init__(self, path: Path, names: list[str]) -> None:
        import h5py

        self.path, self.names, self.file = path, names, None
        with h5py.File(path) as file:
            self.length = len(file[names[0]])

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, number: int) -> dict[str, Any]:
        import h5py

        if self.file is None:
            self.file = h5py.File(self.path)
        return {name: torch.as_tensor(self.file[name][number]) for name in self.names}


def write_h5py(case: Case, folder: Path) -> None:
    import h5py

    folder.mkdir(parents=True)
    with h5py.File(folder / "all.h5", "w") as file:
        sets = {
            name: file.create_dataset(name, (case.count, *shape), dtype) for name, (dtype, shape) in case.fields.items()
        }
        buffered: list[dict[str, np.ndarray]] = []
        for number, sample in enumerate(samples(case), start=1):
            buffered.append(sample)
            if len(buffered) == 512 or number == case.count:
                for name, dataset in sets.items():
                    dataset[number - len(buffered) : number] = np.stack([s[name] for s in buffered])
                buffered = []


def read_h5py(case: Case, folder: Path) -> Callable[[int], Iterator[Any]]:
    dataset = H5Dataset(folder / "all.h5", list(case.fields))
    return lambda epoch: iter(torch.utils.data.DataLoader(dataset, case.batch, shuffle=True))


# --- webdataset ------------------------------------------------------------------------------------------------------


def write_webdataset(case: Case, folder: Path) -> None:
    import webdataset

    folder.mkdir(parents=True)
    with webdataset.ShardWriter(str(folder / "train-%05d.tar"), maxcount=case.per_shard, verbose=0) as writer:
        for number, sample in enumerate(samples(case)):
            entries = {"__key__": f"{number:09d}"}
            for name, value in sample.items():
                entries[f"{name}.bin"] = value.tobytes()
            writer.write(entries)


def read_webdataset(case: Case, folder: Path) -> Callable[[int], Iterator[Any]]:
    import webdataset

    files = sorted(map(str, folder.glob("*.tar")))

    def decode(sample: dict[str, bytes]) -> tuple[torch.Tensor, ...]:
        return tuple(
            torch.frombuffer(bytearray(sample[f"{name}.bin"]), dtype=getattr(torch, dtype)).reshape(shape)
            for name, (dtype, shape) in case.fields.items()
        )

    def epoch(number: int) -> Iterator[Any]:
        shards = webdataset.SimpleShardList(files, seed=number)
        steps = [shards, webdataset.shuffle(len(files)), webdataset.tarfile_to_samples(), webdataset.shuffle(256)]
        pipeline = webdataset.DataPipeline(*steps, webdataset.map(decode), webdataset.batched(case.batch))
        return (dict(zip(case.fields, batch, strict=True)) for batch in pipeline)

    return epoch


# --- mosaicml-streaming ----------------------------------------------------------------------------------------------


def write_streaming(case: Case, folder: Path) -> None:
    from streaming import MDSWriter

    columns = {
        name: f"ndarray:{dtype}:{','.join(map(str, shape))}" if shape else "int"
        for name, (dtype, shape) in case.fields.items()
    }
    with MDSWriter(out=str(folder), columns=columns, size_limit=1 << 26) as writer:
        for sample in samples(case):
            writer.write({name: value if value.shape else int(value) for name, value in sample.items()})


def read_streaming(case: Case, folder: Path) -> Callable[[int], Iterator[Any]]:
    from streaming import StreamingDataset

    dataset = StreamingDataset(local=str(folder), shuffle=True, batch_size=case.batch)
    return lambda epoch: iter(torch.utils.data.DataLoader(dataset, case.batch))


# --- litdata ---------------------------------------------------------------------------------------------------------


def _flat(sample: dict[str, np.ndarray]) -> torch.Tensor:
    """A sample's bytes, field after field: litdata is fastest with blocks of one length."""
    return torch.from_numpy(np.concatenate([value.reshape(-1).view(np.uint8) for value in sample.values()]))


def _sample_bytes(case: Case) -> int:
    return sum(int(np.prod(shape)) * np.dtype(dtype).itemsize for dtype, shape in case.fields.values())


class _LitdataSamples:
    """Called once a sample, in order, in a process of litdata's."""

    def __init__(self, case: Case) -> None:
        self.case, self.source = case, None

    def __call__(self, number: int) -> torch.Tensor:
        if self.source is None:
            self.source = samples(self.case)
        return _flat(next(self.source))


def write_litdata(case: Case, folder: Path) -> None:
    from litdata import optimize
    from litdata.streaming.item_loader import TokensLoader

    size = _sample_bytes(case)
    optimize(
        _LitdataSamples(case),
        list(range(case.count)),
        output_dir=str(folder),
        num_workers=1,
        chunk_size=max(1, (64 << 20) // size) * size,
        item_loader=TokensLoader(block_size=size),
    )


def read_litdata(case: Case, folder: Path) -> Callable[[int], Iterator[Any]]:
    from litdata import StreamingDataLoader, StreamingDataset
    from litdata.streaming.item_loader import TokensLoader

    loader = TokensLoader(block_size=_sample_bytes(case))
    dataset = StreamingDataset(str(folder), item_loader=loader, shuffle=True, drop_last=False)
    batches = StreamingDataLoader(dataset, batch_size=case.batch)

    def epoch(number: int) -> Iterator[Any]:
        for flat in batches:
            fields, start = {}, 0
            for name, (dtype, shape) in case.fields.items():
                stop = start + int(np.prod(shape)) * np.dtype(dtype).itemsize
                part = flat[:, start:stop].contiguous().view(getattr(torch, dtype))
                fields[name], start = part.reshape(len(flat), *shape), stop
            yield fields

    return epoch


# --- the bound -------------------------------------------------------------------------------------------------------


def read_memcpy(case: Case, folder: Path) -> Callable[[int], Iterator[Any]]:
    """Copies of batches from memory to memory, sample by sample in one piece: what no loader can beat."""
    size = sum(int(np.prod(shape)) * np.dtype(dtype).itemsize for dtype, shape in case.fields.values())
    # Far larger than the caches, as the data sets are.
    source = np.ones((max(case.batch, 2_000_000_000 // (size * case.batch) * case.batch), size), np.uint8)
    out = np.empty((case.batch, size), np.uint8)

    def epoch(number: int) -> Iterator[Any]:
        for start in range(0, len(source) - case.batch, case.batch):
            np.copyto(out, source[start : start + case.batch])
            yield {"image": out}

    return epoch


def _without_torchvision() -> None:
    """Peers import torchvision, whose operators a CPU build of torch lacks: declare them, so that the import works."""
    library = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    sys.modules[__name__]._library = library  # type: ignore[attr-defined]


def main() -> None:
    loader, case_name, folder, what = sys.argv[1:5]
    case, here = CASES[case_name], sys.modules[__name__]
    torch.set_num_threads(1)
    if loader in ("streaming", "litdata"):
        _without_torchvision()
    if what == "write":
        getattr(here, f"write_{loader}")(case, Path(folder))
        return
    epoch_of = getattr(here, f"read_{loader}")(case, Path(folder))
    first = next(iter(case.fields))
    epochs = int(sys.argv[5]) if len(sys.argv) > 5 else EPOCHS
    for epoch in range(epochs):
        seen, count, started = [], 0, time.perf_counter()
        for batch in epoch_of(epoch):
            field = batch[first] if first in batch else batch["image"]
            count += len(field)
            if epoch == 0 and loader != "memcpy" and len(seen) < 64:
                seen.append(number_of(field))
        seconds = time.perf_counter() - started
        print(f"rate {count / seconds}", flush=True)
        if epoch == 0 and loader != "memcpy":
            numbers = torch.cat(seen)
            assert len(torch.unique(numbers)) == len(numbers) or loader == "hpcdl", "samples repeat"
            assert not torch.equal(numbers, numbers.sort().values), "the epoch is not shuffled"


if __name__ == "__main__":
    main()
