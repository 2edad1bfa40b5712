"""The analysis on Ray."""
