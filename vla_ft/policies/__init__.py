"""The policies. No policy imports another; what two of them share lives in ``vla_ft.nn``."""
