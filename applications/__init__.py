"""Applications of blocc: transit capacity design and SVM hyperparameter selection."""
