"""Decode attention: one query token for each sequence over the ragged arena."""
