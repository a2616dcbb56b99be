"""The controlled intervention: several methods' off-policy updates on the same rollouts."""
