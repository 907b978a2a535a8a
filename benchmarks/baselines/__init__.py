"""Other methods for the study's SVM problem, written anew from their published descriptions."""
