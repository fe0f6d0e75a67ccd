"""What runs on the host: locks, local environments, images, launching. Never imported inside an image."""
