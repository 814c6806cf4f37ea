"""Documents x tasks to examples: refusals, answers, splits, audit."""
