"""From a trained policy to a robot: how predictions become executed actions."""
