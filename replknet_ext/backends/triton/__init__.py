"""Triton kernels of the three passes. `launch` is the entry; importing it imports triton, so it is done late.

toeplitz_fwd.py holds the Toeplitz product on tensor cores, sliding_fwd.py the form without them, toeplitz_weight.py the
weight gradient, tiles.py the tile sizes (no triton needed).
"""
