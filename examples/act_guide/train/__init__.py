"""Training under the names of the ACT guide."""
