"""One video to one table, in this process. It knows no Ray."""
