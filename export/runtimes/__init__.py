"""What runs a model: the table of runtimes, and a module for each of torch, ONNX Runtime, OpenVINO.

To add a runtime, write a module with the functions of ``table.RuntimeModule``, and a row of the
table ``table.RUNTIMES`` that names it.
"""
