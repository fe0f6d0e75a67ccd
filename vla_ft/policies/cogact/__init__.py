"""CogACT."""
