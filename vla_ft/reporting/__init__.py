"""Pictures of finished runs. Reads a run folder's files; knows nothing of the trainer."""
