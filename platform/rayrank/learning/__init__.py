"""The training loop and prediction: plain torch over any iterable of batches; collectives are injected."""
