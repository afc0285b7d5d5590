"""What a step spends its time on, by class of operator; see ``__main__``."""
