"""What adaptation and fusion share about action units: losses, metrics, balancing. Imports nothing else of ours."""

AUS = (1, 2, 4, 6, 7, 10, 12, 15, 23, 24, 25, 26)
"""The twelve action units of Aff-Wild2 (ABAW), in the order of every table, array and file."""
