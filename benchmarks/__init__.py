"""Ratios measured in one run, each beside a gate that its result is the same. Never part of the tests."""
