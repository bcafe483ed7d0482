"""Attention that computes a prompt once for all its answers."""
