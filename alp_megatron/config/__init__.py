"""The configuration: its schema, how it is read, what its methods stand for."""
