import os

# Before torch loads OpenMP: waiting threads spin for a moment only, then sleep. Seconds of an epoch of the demo
# U-Net on two cores: asleep at once 2.0, 1,000 spins 1.35, more 1.3; two runs side by side, each: asleep at once
# 3.5, 1,000 spins 4.0, 10,000 spins 10, 100,000 spins 50.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
