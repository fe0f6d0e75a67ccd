"""A dataset as a person meets it first: what is in it, what is wrong with it, and a recipe that trains on it."""
