"""What the optimisation method maximises, as a pure function of what the reward models say.

Every mitigation is one function ``reward(inputs, *, strength) -> (R,)`` of `inputs.RewardInputs`.
They compose in a fixed order, each step's result being the next step's only member:

    combine (`ensembles`, or a user's own file)  ->  length (`length`)  ->  shaping (`shaping`)

The first two make the proxy score, which best-of-n and PPO share and which is recorded. Shaping
changes units and, being monotone, no ranking: it is applied to PPO's reward only. docs/rewards.md
has the table of formulas and sources.
"""
