"""OpenVINO files: made from ONNX models, and quantized by OpenVINO's own tool."""
