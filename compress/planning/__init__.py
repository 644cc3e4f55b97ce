"""Which exits a network shall have, and at which thresholds: chosen on a replay table, certified.

`costs` says what an image pays, `front` searches all subsets and thresholds, `stopping` is a second
planner by backward induction, `points` lays all of them side by side, `planner` takes one,
`guarantee` certifies it, `plan` is the file, `job` does all of it for a checkpoint.
"""
