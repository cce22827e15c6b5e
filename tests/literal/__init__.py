"""A call as literal loops: slow, obvious, independent.

What `ndgpa.testing.oracle` leaves out: groups, time, forced blocks, shares of the relevance, biases
of slots, sampled keys, log-sum-exp. Phase 1 is loops over numbers; Phase 2 is torch in whatever
dtype it is given, so it is the truth in float64 and "plain torch" in any other.
"""
