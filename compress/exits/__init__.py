"""What a network with early exits does at any threshold, computed from one pass over the data.

`replay` holds the table of that pass and the decisions, `sweep` the figures at a threshold and over
many, `calibration` how far scores can be believed, `log_text`, `figures` and `report` show them,
`evaluation` does all of it for a checkpoint.

`planner` chooses exits and thresholds: `costs` says what an image pays, `front` searches,
`stopping` is a second planner by backward induction, `points` lays all of them side by side,
`guarantee` certifies, `plan` is the file, `plan_job` does all of it for a checkpoint. `recalibrate`
sets thresholds anew after quantisation.
"""
