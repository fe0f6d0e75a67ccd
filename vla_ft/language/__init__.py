"""Embedding instructions once, before training."""
