"""Do the scores say what they seem to say?"""
