"""How fast rankers are trained, each claim with both arms in one run; ``python -m benchmarks.train``."""
