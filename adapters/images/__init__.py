"""Images: formats that are read, the rule by which they become pixels, and opening them."""
