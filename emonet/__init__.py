"""The EmoNet model package: tensors in, tensors out. It knows no video and no Ray."""

import os

# GNU OpenMP reads this when PyTorch is loaded, so it stands before every import of torch. Left to
# itself it spins for milliseconds while threads wait: on 2 cores with other work beside (the
# decoding child will do) a run took 2 to 10 times as long. Threads that sleep at once make a
# training step 1.4 times as long. So many turns, some tens of microseconds, cost neither.
os.environ.setdefault("GOMP_SPINCOUNT", "30000")
