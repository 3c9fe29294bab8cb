"""Raw files to shards: one file an input kind (it has a `Settings` class), one Dask runner for all."""
