"""The parts of `make demo`, to read and to run: `python -m examples.demo`."""
