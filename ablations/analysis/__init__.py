"""What a study shows: tables, effects, named blocks, two studies compared. Imports neither torch nor lightning."""
