"""What goes to the device: bundles, their dispatcher and its backends.

numpy alone, and Python 3.8, which is what JetPack 5.1 has. A backend needs its own runtime besides.
"""
