"""What a study says, in words and pictures. Imports neither torch nor lightning."""
