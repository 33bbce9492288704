"""The same merge on a cluster of Ray: each model is read, and its part of the work done, on one machine (`model`), this
process merges and fits (`nodes`), and each file is written by one machine (`writing`)."""
