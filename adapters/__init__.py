"""Split any timm architecture into a frozen backbone, a classifier and a head.

Importing this package imports neither torch nor timm. Its modules import them when needed.
"""
