"""One weight path: load, export, transport and verification."""
