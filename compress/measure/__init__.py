"""What a model costs: multiply-adds, parameters, latency, operations, and on which machine.

`prediction` tells what a device that is not here would take, `doctor` what this machine has.
"""
