"""Long-context memory tests: generated streams with facts in them, and questions about the facts when they are old.

A task is a generator: it yields what the model reads, piece by piece (so that a million tokens are never in memory),
and returns the questions. Everything is drawn from (seed, task, length, sample), so that a figure can be repeated.

Circular scoring, after MMBench's CircularEval (Liu et al. 2023): where an answer could be guessed, one sample is a
*circle* of several turns. Each turn is the same stream with the positions of the options rotated (another event first,
another count, another box asked for), so that over the circle every option is the truth once. A sample counts in
`circular` only if every turn of it is right: whoever always says the same gets nothing, whoever guesses evenly among n
options gets (1/n)^turns, which is reported as `chance`.
"""
