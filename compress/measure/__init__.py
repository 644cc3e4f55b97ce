"""What a model costs: multiply-adds, parameters and latency, and on which machine."""
