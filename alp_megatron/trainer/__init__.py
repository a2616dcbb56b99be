"""Holds the training loop and its parts."""
