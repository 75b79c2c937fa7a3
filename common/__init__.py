import os

# Before torch loads OpenMP: waiting threads spin for a moment only, then sleep. An epoch of the demo U-Net on two cores
# takes 2.0 s asleep at once, 1.35 s with 1,000 spins and 1.3 s with more; two runs side by side 3.5 s each asleep, 4.0 s
# with 1,000 spins, 10 s with 10,000 and 50 s with 100,000.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
