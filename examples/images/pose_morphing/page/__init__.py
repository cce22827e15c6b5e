"""The page on which one drags the pose; `build.py` builds it."""
