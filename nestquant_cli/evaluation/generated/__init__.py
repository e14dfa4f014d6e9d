"""Tasks of lm-eval whose items are made here, from words and a seed: they need no data and no network.

`needle` asks for a fact in a long text, `arithmetic` for the result of a few steps. `definitions` has both as tasks of
lm-eval.
"""
