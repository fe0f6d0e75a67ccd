"""Policies under the names of the ACT guide."""
