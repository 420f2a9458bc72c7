"""Every check, by stage. The order of these imports is the order in which the checks run."""

from groundup.verify.checks import model, variants, tokenizer, data, train, resume, chat, infer, tune  # noqa: F401, I001
