"""Check a graph before ONNX Runtime opens it: headkit writes such graphs, and it is bounded."""
