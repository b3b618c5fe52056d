"""Named tolerances of the tests, each with what it has to allow for."""

FP32 = 1e-5  # two orders of float32 operations over a tiny model
FP64 = 1e-10  # closed form against float64 sums
SIGMAS = 4.0  # Monte Carlo mean against truth, in standard errors, under a fixed seed
CHI2_P = 1e-3  # smallest p-value of a goodness-of-fit test under a fixed seed
SHARE = 1e-7  # shares of tokens, which are float32 whatever the rest is
