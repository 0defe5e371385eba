"""The study: which blocks are trained, how many times, and what they show. Rules: `ablations/README.md`."""
