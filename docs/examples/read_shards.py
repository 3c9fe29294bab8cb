"""Train from hpcdl's shards with plain PyTorch: nothing of hpcdl, no HDF5 library.

Fields lie in a shard as they are, uncompressed, at offsets that the manifest names: a memory map and torch.frombuffer
read them.

    python read_shards.py data/zion image label
"""

import json
import mmap
import sys
from pathlib import Path

import torch


class Shards(torch.utils.data.Dataset):
    """A split of a data set; a sample is a dictionary of tensors."""

    def __init__(self, folder: Path, split: str, names: list[str]) -> None:
        manifest = json.loads((folder / "manifest.json").read_text())
        self.samples: list[tuple[dict[str, torch.Tensor], int]] = []
        for shard in manifest["splits"][split]["shards"]:
            if not shard["num_samples"]:
                continue
            with (folder / shard["file"]).open("rb") as file:
                memory = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
            fields = {}
            for name in names:
                kind, shape = manifest["fields"][name]["dtype"], manifest["fields"][name]["shape"]
                count = shard["num_samples"] * torch.Size(shape).numel()
                values = torch.frombuffer(
                    memory, dtype=getattr(torch, kind), count=count, offset=shard["offsets"][name]
                )
                fields[name] = values.view(shard["num_samples"], *shape)
            self.samples += [(fields, number) for number in range(shard["num_samples"])]

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, number: int) -> dict[str, torch.Tensor]:
        fields, place = self.samples[number]
        return {name: values[place] for name, values in fields.items()}


if __name__ == "__main__":
    dataset = Shards(Path(sys.argv[1]), "train", sys.argv[2:])
    for batch in torch.utils.data.DataLoader(dataset, batch_size=16, shuffle=True):
        print({name: tuple(tensor.shape) for name, tensor in batch.items()})
