"""Demonstrations: the sample contract, readers by format, windows, statistics, loading and mock data."""
