"""Trainer against rollout engine at equal weights, for every pair of precisions."""
