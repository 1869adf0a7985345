"""A comparison for people: tables, figures, pictures, and the page that holds them all."""
