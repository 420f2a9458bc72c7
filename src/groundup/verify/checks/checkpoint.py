"""A Hugging Face folder: do its weights, its configs, its tokenizer and its template belong together?"""
