"""Post-training quantization of ONNX files, one file a scheme."""
