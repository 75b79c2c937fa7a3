import os

# Before torch loads OpenMP: waiting threads must sleep. Spinning, two runs on two cores were 25 to 45 times slower than
# one after the other (1.5 -> 66 s an epoch of the demo network); asleep they take 2.0 s an epoch each, alone 1.0 s.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
