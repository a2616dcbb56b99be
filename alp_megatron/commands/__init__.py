"""The commands of `alp-megatron`, a module each: its arguments, and what it does."""
