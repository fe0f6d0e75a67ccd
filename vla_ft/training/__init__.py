"""The one trainer: engines, optimizers, checkpoints, tracking and fault handling for every policy."""
