"""Looking inside a model: at initialisation, and while it trains, in TensorBoard and without it."""
