"""ONNX to TFLite: reading, simplifying, laying out, and writing the flatbuffer."""
