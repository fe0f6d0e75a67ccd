"""Published weights by name: what they are, where they come from, and where they lie on this machine."""
