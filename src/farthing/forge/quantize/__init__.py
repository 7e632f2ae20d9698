"""Quantization of ONNX files, with and without training: a file for each pass, and those that passes share."""
