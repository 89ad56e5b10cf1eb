"""Gallery files, gallery tasks, and recognition of clips and long videos."""
