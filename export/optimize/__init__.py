"""Graph rewrites: the exported ONNX model computes the same numbers in less time."""
