"""A faster sampling loop: each way in a file, exact up to rounding or approximate."""
