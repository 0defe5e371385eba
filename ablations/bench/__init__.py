"""The benchmark: blocks, peers, the explicit formula, length and decoding, timed side by side (`make bench`).

Runs with torch and lightning alone: plots need matplotlib, and peers are measured where they are installed.
"""
