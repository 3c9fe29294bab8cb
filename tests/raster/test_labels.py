from __future__ import annotations

import numpy as np
import pytest

from hpcdl.errors import UsageError
from hpcdl.raster.labels import NO_LABEL, open_labels
from hpcdl.raster.scene import open_scenes
from tests.generators import UTM, image_affine, landcover_files, write_raster


def test_nodata_is_no_label_and_counts_add_up(tmp_path):
    values = np.array([[[11, 11, 42], [255, 0, 42]]], "uint8")
    labels = open_labels(write_raster(tmp_path / "l.tif", values, image_affine(), UTM, nodata=255))
    assert labels.read(0, 0, 2, 3).tolist() == [[11, 11, 42], [NO_LABEL, 0, 42]]
    assert labels.count(labels.grid, block_px=1) == {NO_LABEL: 1, 0: 1, 11: 2, 42: 2}


def test_on_the_image_grid_codes_come_from_the_nearest_pixel(tmp_path):
    files = landcover_files(tmp_path)
    labels, scenes = open_labels(files.labels), open_scenes([files.glob])
    grid = scenes.grid
    codes = labels.read_on(grid, 0, 0, grid.height, grid.width)
    assert set(np.unique(codes)) == {11, 42, 52, 81}
    tile = labels.read_on(grid, 31, 17, 40, 50)
    np.testing.assert_array_equal(tile, codes[31:71, 17:67])


def test_mode_takes_the_most_frequent_code_and_leaves_nodata_out(tmp_path):
    values = np.full((1, 8, 8), 255, "uint8")
    values[0, :4, :4] = 11
    values[0, 0, :3] = 42
    values[0, 4:, 4:] = 81
    values[0, 4, 4:7] = 255
    labels = open_labels(write_raster(tmp_path / "l.tif", values, image_affine(), UTM, nodata=255))
    a, b, c, d, e, f = labels.grid.transform
    coarse = type(labels.grid)(labels.grid.crs, (a * 4, b, c, d, e * 4, f), 2, 2)
    assert labels.read_on(coarse, 0, 0, 2, 2, "mode").tolist() == [[11, NO_LABEL], [NO_LABEL, 81]]


def test_unusable_labels_are_refused(tmp_path):
    floats = write_raster(tmp_path / "f.tif", np.ones((1, 4, 4), "float32"), image_affine(), UTM)
    with pytest.raises(UsageError, match=r"f\.tif: holds float32"):
        open_labels(floats)
    many = write_raster(tmp_path / "m.tif", np.ones((2, 4, 4), "uint8"), image_affine(), UTM)
    with pytest.raises(UsageError, match="2 bands"):
        open_labels(many)
    bare = write_raster(tmp_path / "b.tif", np.ones((1, 4, 4), "uint8"), image_affine(), None)
    with pytest.raises(UsageError, match="--label-crs"):
        open_labels(bare)
    negative = open_labels(write_raster(tmp_path / "n.tif", np.full((1, 4, 4), -3, "int16"), image_affine(), UTM))
    with pytest.raises(UsageError, match=r"n\.tif: holds negative"):
        negative.read(0, 0, 4, 4)
    with pytest.raises(UsageError, match="label resampling 'cubic'"):
        negative.read_on(negative.grid, 0, 0, 1, 1, "cubic")
