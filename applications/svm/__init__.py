"""SVM hyperparameter selection."""
