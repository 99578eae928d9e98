"""The parts of benchmarks/gpu_all.py, in the order of their worth, each a program of its own."""
