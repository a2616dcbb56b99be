"""Builds the policy, a Megatron-Core GPT model, from a Hugging Face config.json."""
