"""A server of services: the Open Inference Protocol over HTTP and gRPC. What computes lies a level above."""
