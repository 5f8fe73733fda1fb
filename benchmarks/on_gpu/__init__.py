"""The parts of ``benchmarks/gpu.py``: checks and measurements on a machine with a GPU."""
