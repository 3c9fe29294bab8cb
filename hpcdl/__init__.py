"""Deep learning on a supercomputer: raw scenes to shards, shards to a trained network, a network to a map."""

__version__ = "0.1.0"
