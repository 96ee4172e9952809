"""The scripts behind the committed measurements. This package is not in the wheel.

Each study is run with ``python -m headkit.benchmarks.studies.NAME`` and writes its results to
``benchmarks/results``. ``python -m headkit.benchmarks.pages.render`` renders the pages from them.
"""
