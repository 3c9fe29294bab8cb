"""Georeferenced rasters: scenes of several files, class labels and their legend, all readable on one grid of pixels."""
