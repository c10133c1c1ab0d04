"""MPI kernels that read detector frames while they are written and write live NeXus results."""
