"""From sampled trajectories to micro-batches."""
