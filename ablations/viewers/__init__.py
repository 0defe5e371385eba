"""Servers on a study: TensorBoard, and Optuna's dashboard."""
