"""A detector that writes HDF5 the way facilities do, for trying out and for tests."""
