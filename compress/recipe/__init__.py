"""A recipe: a chain of steps in one YAML file, validated whole before anything runs.

`schema` says what a file may hold, `plan` unrolls it into tasks (slimming at three ratios is
three), `tasks` holds the work of each kind of task, `engine` runs what is not done yet, `table`
sums up.
"""
