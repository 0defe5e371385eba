"""`report`: one HTML file with everything that a study shows, which opens without a network."""
