"""A run's pages and figures."""
