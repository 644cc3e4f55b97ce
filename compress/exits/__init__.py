"""What a network with early exits does at any threshold, computed from one pass over the data.

`replay` holds the table of that pass and the decisions, `sweep` the figures at a threshold and over
many, `calibration` how far scores can be believed, `log_text`, `figures` and `report` show them,
`evaluation` does all of it for a checkpoint. `recalibrate` sets thresholds anew after
quantisation. `__main__` is the door that lists positions and trains exits.
"""

__all__ = ["main"]


def main(argv: "list[str] | None" = None) -> int:
    """Run the door; return its exit code."""
    from compress.exits.__main__ import main as door

    return door(argv)
