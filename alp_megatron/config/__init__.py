"""The configuration: its schema, how it is read, and what is refused before anything starts."""
