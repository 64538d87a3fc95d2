"""The parts of ``tools/bench/accuracy.py``; imported by that script only."""
