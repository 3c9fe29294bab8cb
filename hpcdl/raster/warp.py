"""The virtual raster (GDAL's VRT format) that shows one file on another grid, whatever window of it is read.

GDAL's defaults let a pixel depend on the window in two ways: an approximated transformation is interpolated along
the window's rows, and the resampling kernel's width is worked out anew for each window. Here the transformation is
exact and the kernel is fixed (XSCALE, YSCALE), so tiles put together equal one read of the whole, bit for bit.
rasterio's WarpedVRT cannot ask for the exact transformation (1.4: tolerance=0 fails), hence this document.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from xml.sax.saxutils import escape

from rasterio.transform import Affine
from rasterio.warp import transform

from hpcdl.raster.grid import Grid, parse_crs

# Our name of a resampling method to GDAL's.
RESAMPLINGS = {
    "nearest": "NearestNeighbour",
    "bilinear": "Bilinear",
    "cubic": "Cubic",
    "cubicspline": "CubicSpline",
    "lanczos": "Lanczos",
    "average": "Average",
    "mode": "Mode",
}

# rasterio's name of a pixel type to GDAL's.
GDAL_TYPES = {
    "uint8": "Byte", "int8": "Int8", "uint16": "UInt16", "int16": "Int16", "uint32": "UInt32", "int32": "Int32",
    "float32": "Float32", "float64": "Float64",
}  # fmt: skip


def warped_document(
    path: Path,
    source: Grid,
    target: Grid,
    dtype: str,
    nodatas: Mapping[int, float | None],
    alpha: int | None,
    resampling: str,
) -> str:
    """The VRT document (XML) of some of a file's bands on the target grid.

    One more band follows them, above 0 where the pixel has data: where no band has its nodata value when one band is
    shown, where not all bands have it when there are several.

    Args:
        path: the file.
        source: the file's grid; its CRS need not be written in the file.
        target: the whole grid to show it on.
        dtype: pixel type of all bands, a key of GDAL_TYPES.
        nodatas: the bands to show, counted from 1, each with the value that means "no data", or None.
        alpha: number of the file's alpha band, counted from 1, or None.
        resampling: a key of RESAMPLINGS.
    """
    kind = GDAL_TYPES[dtype]
    count = len(nodatas)
    scale_x, scale_y = _scales(source, target)
    bands = "".join(
        f'<VRTRasterBand dataType="{kind}" band="{b}" subClass="VRTWarpedRasterBand"/>' for b in range(1, count + 2)
    )
    mapping = "".join(
        f'<BandMapping src="{band}" dst="{place}">{_nodata(value)}</BandMapping>'
        for place, (band, value) in enumerate(nodatas.items(), start=1)
    )
    options = {
        "INIT_DEST": "0",
        "XSCALE": repr(scale_x),
        "YSCALE": repr(scale_y),
        # The source window of a read is estimated from its edges; some pixels beyond the kernel's reach make it safe.
        "SOURCE_EXTRA": "8",
    }
    return (
        f'<VRTDataset rasterXSize="{target.width}" rasterYSize="{target.height}" subClass="VRTWarpedDataset">'
        f"<SRS>{escape(target.crs)}</SRS><GeoTransform>{_gdal(target.affine)}</GeoTransform>{bands}"
        "<BlockXSize>256</BlockXSize><BlockYSize>256</BlockYSize>"
        f"<GDALWarpOptions><WarpMemoryLimit>67108864</WarpMemoryLimit><ResampleAlg>{RESAMPLINGS[resampling]}</ResampleAlg>"
        f"<WorkingDataType>{kind}</WorkingDataType>"
        + "".join(f'<Option name="{name}">{value}</Option>' for name, value in options.items())
        + f'<SourceDataset relativeToVRT="0">{escape(str(path))}</SourceDataset>'
        f"<Transformer><GenImgProjTransformer>{_affine('Src', source)}{_affine('Dst', target)}"
        f"<ReprojectTransformer><ReprojectionTransformer><SourceSRS>{escape(source.crs)}</SourceSRS>"
        f"<TargetSRS>{escape(target.crs)}</TargetSRS></ReprojectionTransformer></ReprojectTransformer>"
        f"</GenImgProjTransformer></Transformer><BandList>{mapping}</BandList>"
        + (f"<SrcAlphaBand>{alpha}</SrcAlphaBand>" if alpha else "")
        + f"<DstAlphaBand>{count + 1}</DstAlphaBand></GDALWarpOptions></VRTDataset>"
    )


def _nodata(value: float | None) -> str:
    if value is None:
        return ""
    number = "nan" if math.isnan(value) else repr(float(value))
    return f"<SrcNoDataReal>{number}</SrcNoDataReal><SrcNoDataImag>0</SrcNoDataImag>"


def _gdal(affine: Affine) -> str:
    return ", ".join(repr(float(number)) for number in affine.to_gdal())


def _affine(side: str, grid: Grid) -> str:
    forward, back = _gdal(grid.affine), _gdal(~grid.affine)
    return f"<{side}GeoTransform>{forward}</{side}GeoTransform><{side}InvGeoTransform>{back}</{side}InvGeoTransform>"


def _scales(source: Grid, target: Grid) -> tuple[float, float]:
    """Target pixels per source pixel along the source's columns and rows, at the middle of the source.

    One pair for the whole grid: below 1 the kernel widens, so that no source pixel is skipped.
    """
    there, back = parse_crs(source.crs), parse_crs(target.crs)
    x, y = source.to_map(source.width / 2, source.height / 2)
    (middle_x,), (middle_y,) = transform(there, back, [x], [y])
    col, row = target.to_pixel(middle_x, middle_y)
    xs, ys = zip(*(target.to_map(*point) for point in ((col, row), (col + 1, row), (col, row + 1))), strict=True)
    points = [source.to_pixel(x, y) for x, y in zip(*transform(back, there, xs, ys), strict=True)]
    (x0, y0), (x1, y1), (x2, y2) = points
    return 1 / math.hypot(x1 - x0, x2 - x0), 1 / math.hypot(y1 - y0, y2 - y0)
