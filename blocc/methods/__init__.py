"""Outer methods, one algorithm a file."""
