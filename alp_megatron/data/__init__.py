"""Makes micro-batches of sampled trajectories."""
