"""Each module measures claims of the README and prints one JSON line; run it as `python -m benchmarks.NAME`."""
