"""Using a trained student: `retort predict` on files, `retort serve` over HTTP."""

import os

# Must be set before torch is imported, so that its threads sleep while they wait for each other, as in training. By
# default they spin, and one other busy process on the machine makes answers ten times slower.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
