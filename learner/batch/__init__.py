"""Scored groups as packed rows."""
