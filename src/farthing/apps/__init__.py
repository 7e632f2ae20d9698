"""Whole jobs, one file each, made only of the parts below."""
