"""Every tolerance of the suite, with its reason. Each is proven by a planted mistake."""

# Float64 on a CPU leaves 1e-16 a step of arithmetic: what is larger is a difference in meaning.
FORWARD_FLOAT64 = 1e-12
GRADIENT_FLOAT64 = 1e-10
# Float32 rounds at 6e-8; two blocks of width 16 were measured at 7e-7 and 1.1e-6 at most.
FORWARD_FLOAT32 = 5e-6
GRADIENT_FLOAT32 = 5e-6
CURVE_FLOAT64 = 1e-9
# A float32 curve may leave the float64 one by the rounding of the loss, a sum of up to 128 float32
# values (measured: 2e-7), and by ten times what rounding does to the float64 curve: a whole run by
# moving each weight by half a rounding before every step (measured after 50 steps: 2e-8 for
# tiny_language, 7e-7 for tiny_image), an optimizer's rule by computing its definition in float32
# (4e-8 to 3e-7; SOAP 1e-5). Float32 runs were at a fifth of the band.
CURVE_FLOAT32_LOSS = 1e-6
CURVE_FLOAT32_FACTOR = 10.0
# The same for sixteen bits between float32 weights: what float64 does on weights rounded to them
# before every step, times a factor for activations, which are rounded too (measured: up to 3.2
# times). Weights kept in sixteen bits leave it, and so do gradients that are clipped too early.
CURVE_SIXTEEN_BITS_FACTOR = 5.0

# A chance is a product of at most eight divisions; a count off by one moves it by 1e-3.
NGRAM = 1e-12
# The same float64 optimum, exponentiated by two programs.
LOGISTIC = 1e-10
# Shares of 400 simulated test sets: three standard deviations of 0.015. BCa misses by 0.05 there.
COVERAGE = 0.045
# The same for a share of 0.8, whose standard deviation is 0.02.
POWER = 0.06
# Float32 losses summed over a document against other batches, frameworks or float64; a token too
# many or too few moves a document's loss by 1e-4 or more.
BATCHED_FLOAT32 = 2e-6

# Float32 probabilities of two frameworks after 2 layers of width 32: sums in another order.
SERVED_FLOAT32 = 1e-4

# Weights after 100 float32 steps, some of them in the other framework and shared by two workers:
# AdamW divides small gradients by their own size and so enlarges their rounding (measured: 8e-5).
# The last step alone, whose rate is the lowest, moves them by 3e-3.
WEIGHTS_FLOAT32 = 4e-4

# Logits of up to 10 from 2 to 4 layers of width 32 against `transformers` without its roundings
# (measured: 1.5e-14).
EXCHANGE_FLOAT64 = 1e-12
# The same in float32, where `transformers` itself is off by up to 5.5e-6 (measured: 6.4e-6 between
# the two). The mildest planted mistake moves a logit by 1e-3.
EXCHANGE_FLOAT32 = 1e-5

# Frequencies that another program computed in float32 and that are written down to 8 digits.
TABLE_FLOAT32 = 2e-7

# Bfloat16 holds eight bits: one rounding moves a value by at most 2**-8 of itself, two by more
# (measured: 0.0038 for statistics in float32, 0.0065 and more where a factor is rounded as well).
ONE_ROUNDING_BFLOAT16 = 2**-8 * 1.001
# Two scores that are nearer would let the rounding of a float64 router decide (1e-15 of a score).
ROUTER_MARGIN = 1e-9

# A key that acts changes results by far more than rounding; one that does not, by nothing at all.
RESPONSE = 1e-6
