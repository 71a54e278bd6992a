"""Classifiers: built, trained, calibrated, measured, kept, applied."""
