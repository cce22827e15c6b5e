"""Clothed people in 3-d, drawn by rule: endless, exact, the same on every machine.

A figure is a `Pose` of a `Body` (skeleton.py) in somebody's clothes (clothes.py), drawn by
render.py, rendered ahead by cache.py. `python -m examples.images.pose_morphing.data.figures`
fills a cache. There is no renderer for GPUs: a core renders some 100 figures of 128x64 a second,
16 cores fill the cache of a training run in a minute, and it is read thousands of times.
"""
