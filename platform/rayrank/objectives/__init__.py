"""Losses by task and term: sums over labels with their counts, so that ranks can be added before dividing."""
