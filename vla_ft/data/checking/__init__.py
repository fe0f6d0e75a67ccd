"""``vla-ft data check``: what is wrong with a dataset, by episode, step and field."""
