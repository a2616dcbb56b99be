"""Everything that only a GPU can show: `make gpu`, or `pytest -m gpu` for the same as tests."""
