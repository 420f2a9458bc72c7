"""Every check, by stage. The order of these imports is the order in which the checks are listed."""

# ruff: noqa: F401, I001
import groundup.verify.checks.init
import groundup.verify.checks.model
import groundup.verify.checks.block
import groundup.verify.checks.attention
import groundup.verify.checks.window
import groundup.verify.checks.scores
import groundup.verify.checks.latent
import groundup.verify.checks.position
import groundup.verify.checks.rope
import groundup.verify.checks.experts
import groundup.verify.checks.tokenizer
import groundup.verify.checks.data
import groundup.verify.checks.loader
import groundup.verify.checks.train
import groundup.verify.checks.width
import groundup.verify.checks.machine
import groundup.verify.checks.resume
import groundup.verify.checks.chat
import groundup.verify.checks.padding
import groundup.verify.checks.infer
import groundup.verify.checks.tune
import groundup.verify.checks.live
import groundup.verify.checks.evaluate
import groundup.verify.checks.export
import groundup.verify.checks.any_model
import groundup.verify.checks.any_tokenizer
import groundup.verify.checks.checkpoint
import groundup.verify.checks.dataset
