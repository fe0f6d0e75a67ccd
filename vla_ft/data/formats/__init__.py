"""One file a dataset format. A reader only answers: these steps of that episode, these keys."""
