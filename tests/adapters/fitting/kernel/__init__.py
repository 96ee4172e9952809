"""Tests of ridge regression over levels."""
