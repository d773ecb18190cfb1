"""A differential judge: what the spans of random programs say, against an independent count.

    PYTHONPATH=src:tests python -m judge --programs 1000 --seed 7

A program is a row of choices (``judge.program``): a model, an input, how it is handed over, settings, and where it
runs. It is run twice with the same seed. First without us, and watched (``judge.observe``): how many rows and tokens
it was given is known because the judge made them, when each row ended is asked of transformers' own stopping criteria
at each step, FLOPs are counted by torch. Then with us; and each number on the spans is held against that
(``judge.claims``). What is exact must be equal, what is a bound must lie on the right side, what is absent claims
nothing.

Nothing here imports what counts in ``inferspan``: names of attributes are written out, and ids, masks and sequences are
counted by plain loops.
"""
