"""The compiled core, where there is one: chunks of bitshuffle-LZ4 to frames, or straight to sums per bin or per pixel.

`library` loads it and says which of its paths this processor has; `decoding`, `binning` and `projecting` are its
operations. It is optional: where the package was installed without a compiler, `library.PATH` is None and they can't be
used.
"""
