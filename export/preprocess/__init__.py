"""timm's eval preprocessing without torch: with Pillow, and as an ONNX graph."""
