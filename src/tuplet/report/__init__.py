"""Reports, figures and pages."""
