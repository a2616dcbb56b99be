"""Slurm: renders and submits runs and sweeps, says how they stand, gathers their results."""
