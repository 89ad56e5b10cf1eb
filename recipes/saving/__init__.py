"""Reading and writing of run folders, safe against a kill at any moment."""
