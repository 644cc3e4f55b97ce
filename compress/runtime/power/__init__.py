"""Energy that a run takes: sensors found by looking, sampled, idle power subtracted.

numpy alone at most, and Python 3.8: it runs on the device itself, straight from its kernel.
"""
