"""The same merge on a cluster of Ray: each model is read, and its part of the work done, on one machine (`model`), and
this process merges, fits and writes (`nodes`)."""
