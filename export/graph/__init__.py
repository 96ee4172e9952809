"""ONNX graphs: convert the backbone, add heads, graft other heads, read and write files."""
