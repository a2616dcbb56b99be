"""What a run tells about itself: metrics, their record, the console, figures, the report."""
