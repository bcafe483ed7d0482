"""One go on a machine with a GPU: kernels, rates of the card, a learner step at the shape of 1.5B, engines.

`bash benchmarks/gpu/run.sh WHEELS OUT` does all of it on a machine that has torch and nothing else. WHEELS is a folder
that `python -m benchmarks.gpu.wheels WHEELS` has filled on another machine; nothing is downloaded.
"""
