"""Solve for a linear head: L-BFGS and ridge regression over a path of penalties."""
