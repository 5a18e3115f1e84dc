"""How much memory a plan takes: pure arithmetic over the model's shape, the plan and the recipe."""
