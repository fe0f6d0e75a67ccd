"""From a checkpoint to actions in robot units."""
