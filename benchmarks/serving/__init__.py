"""How fast the ranking graph answers, and what it does when it is overloaded; see ``__main__``."""
