"""Using a trained student: `retort predict` on files, `retort serve` over HTTP."""

import os

# Before anything imports torch: its threads sleep while they wait for each other, as in training. By default they spin,
# and then one other busy process on the machine makes an answer ten times slower.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
