import os

# Before torch loads OpenMP: waiting threads must sleep. Spinning, two trainings at once on two cores took 1.3 to 2.8 s
# an epoch of the demo network, asleep .9 to 1.2 s; with a third program on the cores up to 66 s against 2.0 s.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
