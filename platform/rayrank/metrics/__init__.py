"""How good scores are: pure, vectorised numpy over merged :class:`~rayrank.metrics.scores.Scores`."""
