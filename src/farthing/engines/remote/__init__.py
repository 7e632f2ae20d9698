"""Asking a server over HTTP: patience, transport and two protocols, for the engine ``oip``."""
