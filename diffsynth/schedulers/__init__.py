"""Noise schedules and solver steps: stateless descriptions, coefficients in float64 on the host."""
