"""Parts of `tools/fuzz.py`: what is mutated, how, and what is watched while it is read."""
