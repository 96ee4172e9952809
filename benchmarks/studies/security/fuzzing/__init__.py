"""A structured fuzzer: it changes valid inputs and passes them through each door of headkit.

A door is a function that takes bytes from outside: a head file, an ONNX model, a request, …. Input
number ``i`` of a seed is always the same bytes. A door must accept an input or refuse it with
headkit's own error, within 5 seconds and 1 GB; everything else is a fault.
"""
