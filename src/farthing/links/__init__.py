"""Wires to other machines: one file each."""
