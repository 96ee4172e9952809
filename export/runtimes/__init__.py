"""The table of runtimes, and one module for each: torch, ONNX Runtime, OpenVINO."""
