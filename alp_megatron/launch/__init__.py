"""Runs and sweeps on Slurm or on this machine."""
