from __future__ import annotations

from typing import Any

import pytest
import torch

from hpcdl.catalog import bundled_root
from hpcdl.shards.loader import Batch
from hpcdl.train.job import DataInfo, load_job

UNET = bundled_root() / "jobs" / "unet.py"


def job(channels: int = 1, classes: int = 2, size: int = 32, **settings: Any) -> Any:
    data = DataInfo(
        shapes={"image": (channels, size, size), "label": (size, size)},
        class_names=tuple(f"c{k}" for k in range(classes)),
        mean={"image": (10.0,) * channels},
        std={"image": (2.0,) * channels},
        fill={"image": 0.0},
        histogram=tuple(10**k for k in range(classes)),
    )
    return load_job(UNET, settings, data)


def test_the_published_network_has_its_published_size() -> None:
    network = job(width=64, depth=4, norm="none").networks()["unet"]
    assert sum(p.numel() for p in network.parameters()) == 31_030_658


@pytest.mark.parametrize("norm", ["none", "batch", "group"])
@pytest.mark.parametrize("size", [(16, 16), (13, 21)])
def test_scores_are_as_large_as_the_image(norm: str, size: tuple[int, int]) -> None:
    one = job(channels=3, classes=5, width=4, depth=3, norm=norm)
    assert one.predict_step(one.networks(), torch.zeros(2, 3, *size)).shape == (2, 5, *size)


def test_pixels_without_data_become_the_mean() -> None:
    x = torch.tensor([[[[0, 12]]], [[[10, 0]]]], dtype=torch.uint16)
    assert job()._normalise(x).tolist() == [[[[0.0, 1.0]]], [[[0.0, 0.0]]]]


def test_class_weights_have_mean_one_over_the_train_pixels() -> None:
    one = job(classes=4, class_weight=0.5)
    share = torch.tensor(one.data.histogram, dtype=torch.float) / sum(one.data.histogram)
    assert (one.weights * share).sum().item() == pytest.approx(1)
    assert one.weights[0] / one.weights[1] == pytest.approx(10**0.5)
    assert job(classes=4).weights.tolist() == pytest.approx([1] * 4)


@pytest.mark.parametrize(("augment", "number"), [("none", 1), ("flips", 4), ("d4", 8)])
def test_image_and_label_turn_together(augment: str, number: int) -> None:
    one = job(augment=augment)
    image = torch.arange(9.0).view(1, 1, 3, 3)
    draws = torch.arange(64)
    x, y = one._augment(image.expand(64, 1, 3, 3), image[0].long().expand(64, 3, 3), draws)
    assert torch.equal(x[:, 0].long(), y)
    assert len({tuple(label.flatten().tolist()) for label in y}) == number


def test_repeats_that_fill_a_batch_weigh_nothing() -> None:
    one = job(size=16, width=2, depth=1, norm="none", augment="none")
    networks = one.networks()
    image, label = torch.rand(4, 1, 16, 16) * 20, torch.randint(0, 2, (4, 16, 16), dtype=torch.uint8)

    def loss(mask: list[bool], number: int) -> tuple[float, float]:
        batch = Batch(
            {"image": image[:number], "label": label[:number]},
            torch.tensor(mask),
            torch.zeros(number, dtype=torch.int64),
        )
        update = next(one.training_step(networks, batch))
        return update.loss.total.item(), update.loss.weight.item()

    assert loss([True, True, False, False], 4) == pytest.approx(loss([True, True], 2), rel=1e-5)


def test_one_class_is_too_few() -> None:
    from hpcdl.errors import UsageError

    with pytest.raises(UsageError, match=r"unet\.py: needs a data set of at least two classes"):
        job(classes=1)


def test_jitter_moves_all_bands_of_a_sample_together() -> None:
    one = job(channels=4, augment="none", jitter=0.1)
    still = torch.zeros(500, 4, 2, 2)
    moved, _ = one._augment(still, torch.zeros(500, 2, 2, dtype=torch.int64), torch.arange(500))
    offset_BC = moved[:, :, 0, 0]
    assert torch.equal(moved, offset_BC[:, :, None, None].expand_as(moved))
    assert offset_BC.mean(1).std().item() == pytest.approx((0.1**2 + 0.05**2 / 4) ** 0.5, rel=0.1)
    assert (offset_BC - offset_BC.mean(1, keepdim=True)).std().item() == pytest.approx(0.05 * (3 / 4) ** 0.5, rel=0.1)
