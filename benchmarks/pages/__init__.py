"""Write the committed measurements into README and docs. This package is not in the wheel."""
