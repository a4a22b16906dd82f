"""Other people's trainers: a module for each, which asks for their package when imported."""
