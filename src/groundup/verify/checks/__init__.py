"""Every check, by stage. The order of these imports is the order in which the checks run."""

# ruff: noqa: F401, I001
import groundup.verify.checks.model
import groundup.verify.checks.variants
import groundup.verify.checks.tokenizer
import groundup.verify.checks.data
import groundup.verify.checks.loader
import groundup.verify.checks.train
import groundup.verify.checks.resume
import groundup.verify.checks.chat
import groundup.verify.checks.infer
import groundup.verify.checks.tune
