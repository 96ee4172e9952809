"""Full disks, missing permissions, clocks that are off, stores that fail, and killed writers.

Each test tries every writer: it raises headkit's error, which names the path and the reason, what
was there before stays, and no temporary file is left.
"""
