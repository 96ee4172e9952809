"""Changes of valid inputs: of JSON values, bytes, and the structures of each file format."""
