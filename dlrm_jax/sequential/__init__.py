"""Sequential recommendation: which of all items follows a user's history?"""
