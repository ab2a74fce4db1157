"""Architectures, and how their inputs are made ready; where their weights come from is ``weights/``."""
