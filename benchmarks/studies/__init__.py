"""The scripts behind the committed measurements. Not part of the wheel."""
