"""Documents -> pairs -> traces -> batches."""
