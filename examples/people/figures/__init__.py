"""Clothed people in 3-d, drawn by rule: endless, exact, the same on every run.

A figure is a `Pose` (poses.py) of a `Body` (skeleton.py, body.py) in somebody's clothes
(clothes.py), drawn by render.py and rendered ahead by cache.py. `python -m
examples.people.figures` fills a cache, `...figures.sheet` draws a sheet to look
at, and correspondence.py matches two pictures of somebody.

There is no renderer for GPUs, since none would pay: a core draws some 60 figures of 128x64 a second
and 10 of 512x256, so the 16 cores beside a GPU fill the cache of a training run in a minute or two,
once, and the training then reads every picture many times.
"""
