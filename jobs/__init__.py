"""The same stages on Ray, and the `emopipe` command line."""

import os

# Ray reads these when it is imported or started.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
# Its workers are this run's work. At Ray's niceness of 15 they starve beside anything else.
os.environ.setdefault("RAY_worker_niceness", "0")
# What its processes report (that a worker died, say) it would print to standard output, among ours.
os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", ".")
