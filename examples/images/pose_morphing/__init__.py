"""Pose morphing by attention copying: a person re-rendered in another pose, texture and all."""
