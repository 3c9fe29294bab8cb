"""Sharded HDF5 data sets: manifest and digests, writer, sample order, loader. The format is told in docs/shard-format.md."""
