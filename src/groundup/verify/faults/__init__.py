"""Every planted fault, by stage; each proves that its check can fail."""

import groundup.verify.faults.attention
import groundup.verify.faults.block
import groundup.verify.faults.chat
import groundup.verify.faults.data
import groundup.verify.faults.experts
import groundup.verify.faults.infer
import groundup.verify.faults.init
import groundup.verify.faults.model
import groundup.verify.faults.position
import groundup.verify.faults.resume
import groundup.verify.faults.tokenizer
import groundup.verify.faults.train
import groundup.verify.faults.tune  # noqa: F401
