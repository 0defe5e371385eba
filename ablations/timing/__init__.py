"""How long a step takes: steps, paired rounds, memory, the machine. Reads no study."""
