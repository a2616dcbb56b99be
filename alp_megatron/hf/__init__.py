"""Facts of a Hugging Face model directory, read once."""
