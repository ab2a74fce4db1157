"""Readers of data set layouts: each turns a folder into manifest entries."""
