"""Blocks that two or more policies share. They know nothing of batches, datasets or configurations."""
