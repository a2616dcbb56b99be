"""Questions that take several runs or methods to answer."""
