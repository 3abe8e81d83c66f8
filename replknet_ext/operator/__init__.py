"""The inside of the operator: what is computed (problem), how it is differentiated, and the raw ops."""
