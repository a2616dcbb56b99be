"""The numbers of a run: metrics, their record, healthy ranges, the console."""
