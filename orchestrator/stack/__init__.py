"""A private one-machine SLURM, broker and database, for trying out and for tests."""
