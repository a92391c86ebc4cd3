"""The decoder, its weights and its log-probabilities."""
