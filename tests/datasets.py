"""Tiny data sets in the shard format, for tests that train: written by the project's own writer."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from hpcdl.shards.manifest import Manifest, build_manifest, file_digest, load_manifest, save_manifest
from hpcdl.shards.writer import write_shard_file

COLORS = [[70, 107, 159], [222, 197, 197], [104, 171, 95], [204, 184, 121]]


def write_blobs(
    folder: Path,
    splits: dict[str, int],
    chip_px: int = 16,
    bands: int = 2,
    classes: int = 3,
    per_shard: int = 8,
    seed: int = 0,
) -> Manifest:
    """Chips whose first band tells the class of each pixel, with noise, and a column without data: learnable in a few steps."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(seed)
    written: dict[str, dict[str, object]] = {}
    pixels: list[np.ndarray] = []
    labels: list[np.ndarray] = []
    for split, number in splits.items():
        shards = []
        for place, start in enumerate(range(0, number, per_shard)):
            count = min(per_shard, number - start)
            coarse = generator.integers(0, classes, (count, 4, 4))
            label = np.kron(coarse, np.ones((chip_px // 4, chip_px // 4))).astype(np.uint8)
            noise = generator.normal(0, 20, (count, bands, chip_px, chip_px))
            image = (1000 + 300.0 * label[:, None] + noise).astype(np.uint16)
            image[:, :, :, 0], label[:, :, 0] = 0, 255
            name = f"{split}-{place:05d}.h5"
            write_shard_file(folder / name, {"image": image, "label": label}, {"plan": "test"})
            path = folder / name
            shards.append(
                {"file": name, "num_samples": count, "num_bytes": path.stat().st_size, "sha256": file_digest(path)}
            )
            if split == "train":
                pixels.append(np.moveaxis(image[..., 1:], 1, 0).reshape(bands, -1))
                labels.append(label[..., 1:].ravel())
        written[split] = {"num_samples": number, "num_dropped": 0, "shards": shards}
    every = np.concatenate(pixels, axis=1)
    entries = build_manifest(
        "landcover",
        {
            "image": {"dtype": "uint16", "shape": [bands, chip_px, chip_px], "fill": 0},
            "label": {"dtype": "uint8", "shape": [chip_px, chip_px]},
        },
        written,
        {
            "classes": [{"index": k, "code": k + 1, "name": f"class {k}", "color": COLORS[k]} for k in range(classes)],
            "ignore_index": 255,
            "statistics": {
                "image": {
                    "mean": every.mean(1).tolist(),
                    "std": every.std(1).tolist(),
                    "count": [every.shape[1]] * bands,
                },
                "label": {"histogram": np.bincount(np.concatenate(labels), minlength=classes).tolist()},
            },
        },
    )
    save_manifest(folder, entries)
    return load_manifest(folder)
