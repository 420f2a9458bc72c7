"""Every planted fault, by stage; each proves that its check can fail."""

from groundup.verify.faults import chat, data, infer, model, resume, tokenizer, train, tune  # noqa: F401
