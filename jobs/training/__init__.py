"""Training runs: where they run, their folder, and their reports."""
