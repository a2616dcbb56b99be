"""Full runs of several methods and seeds under controlled mismatches: planned, run, tabulated."""
