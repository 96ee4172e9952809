"""Any timm architecture as a frozen backbone, a classifier and a head.

Importing this package imports neither torch nor timm; its modules do when they need them.
"""
