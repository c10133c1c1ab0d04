"""Routes to SLURM: one contract (`gateway`), one module per route, one table of job states."""
