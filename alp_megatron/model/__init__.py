"""The policy: a Megatron-Core GPT model built from a Hugging Face config.json."""
