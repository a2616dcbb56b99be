"""Rollouts: the engine protocol and vLLM behind it, in a process of its own."""
