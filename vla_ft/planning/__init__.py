"""The memory forecast: what a run will hold, on a card and on the host, before anything is loaded."""
