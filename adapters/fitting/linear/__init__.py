"""Fit linear heads: preconditioned L-BFGS and ridge regression along a regularization path."""
