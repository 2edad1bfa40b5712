"""The same stages on Ray, and the `emopipe` command line."""
