"""The recipe of a run: its keys, the errors in it, and the data that is read before anything starts."""
