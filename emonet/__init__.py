"""The EmoNet model package: tensors in, tensors out. It knows no video and no Ray."""

import os

# GNU OpenMP reads this when PyTorch is loaded, so it stands before every import of torch. Its
# threads otherwise spin while they wait: on 2 cores with other work beside (the decoding child will
# do) a run took 2 to 10 times as long. Threads that sleep cost nothing on an idle machine.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
