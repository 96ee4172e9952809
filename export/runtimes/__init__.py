"""Runtimes, which run models: a table of them, and modules for torch, ONNX Runtime and OpenVINO.

To add a runtime, write a module with the functions of ``table.RuntimeModule`` and add a row for it
to ``table.RUNTIMES``.
"""
