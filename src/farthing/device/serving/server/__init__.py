"""A server of services: the Open Inference Protocol over HTTP. A thin shell; what computes lies a level above."""
