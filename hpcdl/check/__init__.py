"""Is a data set what its manifest says: digests, distances between splits, class coverage; and a picture of its splits."""
