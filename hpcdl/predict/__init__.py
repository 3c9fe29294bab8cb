"""From a scene to a georeferenced class map: windows, blending, the files that come out, and accuracy against labels."""
