"""Attacks that were tried on headkit. Each script says what it tries, and what came of it before.

Commit 64f666f is the state before the attacks were answered.
"""
