"""Results for people: tables, the comparison of methods and the web page."""
