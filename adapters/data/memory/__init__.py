"""Open labeled data that are already in memory: arrays, pairs, data sets and tables.

``open`` is the door; each other module reads one kind of object, or one half of it.
"""
