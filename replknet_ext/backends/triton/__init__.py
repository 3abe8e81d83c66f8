"""Triton kernels of the three passes. `launch` is the entry; importing it imports triton, so it is done late.

forward.py holds the Toeplitz product on tensor cores, fma.py the form without them, weight.py the weight gradient,
tiles.py the tile sizes (no triton needed).
"""
