"""Changes to the weights of a backbone."""
