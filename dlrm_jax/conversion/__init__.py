"""Models from and to PyTorch and ONNX."""
