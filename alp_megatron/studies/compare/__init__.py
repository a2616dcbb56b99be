"""Methods x mismatches x seeds."""
