"""Every planted fault, by stage; each proves that its check can fail."""

# ruff: noqa: F401
import groundup.verify.faults.any_model
import groundup.verify.faults.any_model_parts
import groundup.verify.faults.any_template
import groundup.verify.faults.any_tokenizer
import groundup.verify.faults.asked
import groundup.verify.faults.attention
import groundup.verify.faults.block
import groundup.verify.faults.chat
import groundup.verify.faults.checkpoint
import groundup.verify.faults.checkpoint_files
import groundup.verify.faults.data
import groundup.verify.faults.dataset
import groundup.verify.faults.evaluate
import groundup.verify.faults.experts
import groundup.verify.faults.export
import groundup.verify.faults.infer
import groundup.verify.faults.init
import groundup.verify.faults.live
import groundup.verify.faults.machine
import groundup.verify.faults.model
import groundup.verify.faults.near
import groundup.verify.faults.position
import groundup.verify.faults.resume
import groundup.verify.faults.serve
import groundup.verify.faults.tokenizer
import groundup.verify.faults.train
import groundup.verify.faults.tune
