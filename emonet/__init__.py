"""The EmoNet model package: tensors in, tensors out. It knows no video and no Ray."""

import os

# GNU OpenMP reads this when PyTorch is loaded, so it stands before every import of torch. Left to
# itself it spins for milliseconds while threads wait: on 2 cores with other work beside (the
# decoding child will do) a run took 2 to 10 times as long. Threads that sleep at once make a
# training step 1.4 times as long. So many turns, some microseconds, cost neither: beside two busy
# processes a run takes as long as with none (with 30,000 a tenth more).
os.environ.setdefault("GOMP_SPINCOUNT", "4000")
