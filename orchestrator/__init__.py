"""Real-time automatic processing of detector data on SLURM clusters."""

__version__ = "0.1.0"
