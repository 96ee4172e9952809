"""What there is: the catalogue of architectures. Searching it imports neither torch nor timm."""
