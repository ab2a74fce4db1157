"""Architectures only; where their weights come from is ``weights.py``."""
