"""How a study is trained: storage, queue, workers, and what watches them."""
