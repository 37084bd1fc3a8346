"""Runs brought back from their record: trained again and compared, or their best model loaded."""
