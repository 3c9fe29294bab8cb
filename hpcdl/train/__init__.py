"""Training: one loop for all architectures. A job file imports what it needs from here."""

from hpcdl.resources import Range
from hpcdl.shards.loader import Batch
from hpcdl.train.job import DataInfo, JobBase, Mean, Sums, Update

__all__ = ["Batch", "DataInfo", "JobBase", "Mean", "Range", "Sums", "Update"]
