"""What a study asks: its file, axes, rows and cells. Imports neither torch nor optuna."""
