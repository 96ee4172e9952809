"""Kill writers at random moments, two at a time, and check that nothing is lost or torn.

Run ``python -m headkit.benchmarks.studies.security.kills [local] [s3]``. It writes
``benchmarks/results/security/kills.json`` after each slice, so an interrupted run continues with
the slices that are missing. Needs ``headkit[dev]`` and a POSIX system.

- ``actors``: fork a process, and end it with SIGKILL at a drawn moment. Says how it is drawn.
- ``store_writers``, ``cache_writers``, ``output_writers``: what the processes do, and the checks.
- ``slices``: a slice is one store, cache or folder of outputs that many kills hit without repair.
- ``__main__``: the sections, and the sums over their slices.
"""
