"""What a request costs with asgi_sqla, without it, and with what else there is.

``python -m benchmarks`` measures everything and writes ``results.json``, ``results.rst`` and
``results.svg`` beside this file; ``--short`` does it all on a small scale.
"""
