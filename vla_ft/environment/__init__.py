"""Which card is here, which environment fits it, what is wrong.

Standard library and NVML only, so that the same code runs on the host and inside every image.
"""
