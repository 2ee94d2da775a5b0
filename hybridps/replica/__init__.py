"""A replica: a store that follows the tables of others, values only, and asks for what it lacks."""
