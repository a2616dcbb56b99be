"""What each command of `alp-megatron` does."""
