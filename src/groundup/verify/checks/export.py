"""Is what is handed out what was trained?"""
