"""Write the committed measurements into README and docs. Not part of the wheel."""
