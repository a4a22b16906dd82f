"""Timings: ratios of two sides measured in alternation within one run."""
