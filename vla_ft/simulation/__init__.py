"""Simulated robots: recording demonstrations (extra ``sim``; not part of the training images)."""
