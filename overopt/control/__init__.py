"""Learning control from preferences (Christiano et al. 2017): the world without tokens.

A world of this package hands out prompts and texts, and everything between it and the records (sampling,
reward models, methods) reads token ids. A trajectory of a pendulum has none, so control is a wing of its
own and not a file among the worlds: environments, a human who compares segments, a reward ensemble, a
policy. It meets the rest at both ends: its stages are run by the same engine into the same store
(``overopt run control``), and its records pass the same door, so that figures, fits and reports hold.
"""
