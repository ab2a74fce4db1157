"""Weights: the table of published ones, their files, fetching, and safe reading. Knows no stage."""
