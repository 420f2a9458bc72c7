"""Which attention kernel trained the model stands in the stage's metrics."""

import pytest
import torch
from optimizer_runs import make_job

from groundup.model import attention
from groundup.train.loop import train


@pytest.mark.parametrize("served, expected", [(True, "native"), (False, "torch sdpa, masked")])
def test_the_record_names_the_kernel_that_trained(tmp_path, monkeypatch, served, expected):
    """Bug: the record does not tell a machine with the kernel of our own from one without; a kernel that an earlier
    stage, or a validation, used is named."""
    if served and not attention.native.available():
        pytest.skip("needs AVX512-BF16 and a C++ compiler")
    if not served:
        monkeypatch.setattr(attention.native, "serves", lambda *_: False)
    job, q = make_job(tmp_path, steps=2), torch.zeros(1, 1, 4, 16)
    attention.KERNELS.add("of an earlier stage")

    def validate():
        attention.attend(q, q, q, None, 1.0, softcap=1.0)  # explicit
        return {"validation_loss": 1.0}

    job.validate = validate
    assert train(job)["attention"] == expected
    assert "attention" not in train(make_job(tmp_path, steps=2))  # it was done: nothing ran
    attention.KERNELS.clear()
